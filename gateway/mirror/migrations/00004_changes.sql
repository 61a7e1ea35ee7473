-- +goose Up
-- What gateways over this database must not go on believing of a version (of all of a module where it is ''), in the order
-- of their commits. seq is a place of mirror_index_clock: about the time, in microseconds.
CREATE TABLE mirror_changes (
    seq     BIGINT PRIMARY KEY,
    path    TEXT   NOT NULL,
    version TEXT   NOT NULL
);

-- +goose Down
DROP TABLE mirror_changes;
