-- What persons may do who are no administrators.

CREATE TABLE rights (
    person TEXT NOT NULL,
    -- bookmark, recover or mount.
    word TEXT NOT NULL,
    -- Of a set; empty if it is of a VM.
    set_name TEXT NOT NULL,
    -- Of a VM, by its id; empty if it is of a set.
    vm_id TEXT NOT NULL,
    granted_us BIGINT NOT NULL,
    -- The role that granted it.
    granted_by TEXT NOT NULL,
    PRIMARY KEY (person, word, set_name, vm_id)
);
CREATE INDEX rights_by_set ON rights (set_name);
CREATE INDEX rights_by_vm ON rights (vm_id);
