-- When frames of a VM waited in its guest's spool: the link, or this appliance, took less than was written.

CREATE TABLE spools (
    id TEXT PRIMARY KEY NOT NULL,
    vm_id TEXT NOT NULL,
    -- The last LSN that was durable here when it began.
    from_lsn BIGINT NOT NULL,
    from_us BIGINT NOT NULL,
    -- Absent while it goes on.
    to_us BIGINT
);
CREATE INDEX spools_by_vm ON spools (vm_id, from_us);
