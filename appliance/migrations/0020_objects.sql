-- Files kept at the appliance. Copied from DIR/objects, which is the authority, so that they can be searched with SQL.

CREATE TABLE objects (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    -- iso, ova, template or file.
    kind TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    -- BLAKE3 of the content.
    hash TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    published BIGINT NOT NULL,
    hold BIGINT NOT NULL,
    locked_until_us BIGINT NOT NULL
);
CREATE INDEX objects_by_kind ON objects (kind, published);

CREATE TABLE object_tags (
    object_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (object_id, key)
);
CREATE INDEX object_tags_by_value ON object_tags (key, value);
