-- One schema for SQLite and PostgreSQL: TEXT and BIGINT only. Times are microseconds since 1970, hashes hexadecimal.

CREATE TABLE appliance (
    -- SHA-256 of the CA certificate: a catalog belongs to one appliance.
    ca_sha256 TEXT PRIMARY KEY NOT NULL
);

CREATE TABLE vms (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    -- Why nothing is accepted from this VM; NULL while all is well.
    quarantine TEXT,
    -- BLAKE3 of the nonce the next Hello must carry; NULL right after enrolment.
    nonce_hash TEXT,
    -- BLAKE3 of the nonce issued and not yet known to be saved by the splitter.
    pending_nonce_hash TEXT,
    dmi_uuid TEXT,
    machine_id TEXT,
    hostname TEXT NOT NULL,
    software TEXT NOT NULL,
    created_us BIGINT NOT NULL
);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY NOT NULL,
    secret_hash TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    replaces BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    used_us BIGINT,
    revoked_us BIGINT
);

-- Every certificate ever issued. One that is not listed is not accepted.
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL,
    vm_id TEXT,
    subject TEXT NOT NULL,
    issued_us BIGINT NOT NULL,
    not_after_us BIGINT NOT NULL,
    revoked_us BIGINT
);
CREATE INDEX certificates_by_vm ON certificates (vm_id);

CREATE TABLE bookmarks (
    id TEXT PRIMARY KEY NOT NULL,
    vm_id TEXT NOT NULL,
    name TEXT NOT NULL,
    lsn BIGINT NOT NULL,
    time_us BIGINT NOT NULL,
    consistency TEXT NOT NULL,
    UNIQUE (vm_id, name)
);

CREATE TABLE audit (
    id TEXT PRIMARY KEY NOT NULL,
    at_us BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_us);
