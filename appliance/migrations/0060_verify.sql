-- Verifies of VMs: those that run, and the last outcomes.

CREATE TABLE verifications (
    id TEXT PRIMARY KEY NOT NULL,
    vm_id TEXT NOT NULL,
    -- Numbers of the disks, separated by commas; empty for all.
    disks TEXT NOT NULL,
    begun_us BIGINT NOT NULL,
    ended_us BIGINT NOT NULL,
    end_lsn BIGINT NOT NULL,
    -- running, done or failed.
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- JSON: what was compared of each disk, and the first places that differed.
    results TEXT NOT NULL,
    differing_bytes BIGINT NOT NULL
);
CREATE INDEX verifications_by_vm ON verifications (vm_id, begun_us);
