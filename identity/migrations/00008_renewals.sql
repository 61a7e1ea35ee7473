-- +goose Up
-- Keys that the device had before its present one, JSON; empty: none.
ALTER TABLE identity_devices ADD COLUMN former TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE identity_devices DROP COLUMN former;
