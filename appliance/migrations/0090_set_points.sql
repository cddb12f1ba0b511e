-- Points of consistency sets: one moment across the members that a set had then.

CREATE TABLE set_points (
    id TEXT PRIMARY KEY NOT NULL,
    set_name TEXT NOT NULL,
    -- Of a bookmark; empty for an automatic point.
    name TEXT NOT NULL,
    time_us BIGINT NOT NULL,
    -- automatic or bookmark.
    kind TEXT NOT NULL,
    -- The lowest level of its members.
    consistency TEXT NOT NULL,
    -- barrier, mixed or clock.
    cut TEXT NOT NULL,
    hold_us BIGINT NOT NULL,
    bound_us BIGINT NOT NULL,
    -- JSON: where each member stands, and how it came there.
    members TEXT NOT NULL,
    -- JSON: who is not in it, and why.
    missing TEXT NOT NULL
);
CREATE INDEX set_points_by_time ON set_points (set_name, time_us);
CREATE UNIQUE INDEX set_points_by_name ON set_points (set_name, name) WHERE name <> '';

-- How points of a set are taken. Microseconds between automatic ones, 0 for none.
ALTER TABLE sets ADD COLUMN every_us BIGINT NOT NULL DEFAULT 5000000;
-- free, freeze or clock.
ALTER TABLE sets ADD COLUMN hold TEXT NOT NULL DEFAULT 'free';
-- JSON: an array of patterns of names, in which order freeze hooks run.
ALTER TABLE sets ADD COLUMN hooks TEXT NOT NULL DEFAULT '[]';
