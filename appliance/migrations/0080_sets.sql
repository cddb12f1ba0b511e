-- Consistency sets: VMs by rules over names and tags, and who was in them when.

CREATE TABLE sets (
    name TEXT PRIMARY KEY NOT NULL,
    -- JSON: an array of rules as they were written.
    rules TEXT NOT NULL,
    -- The retention policy of its members; empty for none.
    policy TEXT NOT NULL,
    created_us BIGINT NOT NULL
);

-- Who was in a set when it was last looked at: so that a change is seen.
CREATE TABLE set_members (
    set_name TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    since_us BIGINT NOT NULL,
    PRIMARY KEY (set_name, vm_id)
);

CREATE TABLE set_changes (
    id TEXT PRIMARY KEY NOT NULL,
    set_name TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    -- 1: joined, 0: left.
    joined BIGINT NOT NULL,
    cause TEXT NOT NULL
);
CREATE INDEX set_changes_by_set ON set_changes (set_name, at_us);
