-- Grants to restore one disk of one VM as of one point. Only the hash of the secret is stored.

CREATE TABLE grants (
    id TEXT PRIMARY KEY NOT NULL,
    secret_hash TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    disk BIGINT NOT NULL,
    lsn BIGINT NOT NULL,
    time_us BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    revoked_us BIGINT,
    used_us BIGINT
);
