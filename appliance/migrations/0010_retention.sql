-- Retention policies by name, and the policy of each VM. What holds for a VM is in its journal too.

CREATE TABLE policies (
    name TEXT PRIMARY KEY NOT NULL,
    -- TOML, as `tidemark policy show` prints it.
    body TEXT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE TABLE policy_assignments (
    vm_id TEXT PRIMARY KEY NOT NULL,
    policy TEXT NOT NULL
);
