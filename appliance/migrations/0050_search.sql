-- Search over all VMs: tags, and bookmarks by text, time and level.

CREATE TABLE vm_tags (
    vm_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (vm_id, key)
);
CREATE INDEX vm_tags_by_value ON vm_tags (key, value, vm_id);

-- The name in lower case: the two databases fold letters differently, so the appliance does it.
ALTER TABLE bookmarks ADD COLUMN folded TEXT NOT NULL DEFAULT '';
UPDATE bookmarks SET folded = lower(name);

-- Each holds all that a search judges by, so that of a million rows only those found are read from the table.
CREATE INDEX bookmarks_by_time ON bookmarks (time_us, vm_id, folded, consistency);
CREATE INDEX bookmarks_by_vm_time ON bookmarks (vm_id, time_us, folded, consistency);
