package identity

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The states of a device that was enrolled, blocked or deleted here.
const (
	DeviceEnrolled = "enrolled"
	DeviceBlocked  = "blocked"
	DeviceDeleted  = "deleted"

	deviceForgotten = "forgotten" // its row tells other nodes that it is gone
)

// A LocalDevice is what is kept here of a device, beside what feeds say of it.
type LocalDevice struct {
	ID          string    `json:"id"`
	State       string    `json:"state"`
	Owner       string    `json:"owner,omitempty"`
	OwnerIssuer string    `json:"owner_issuer,omitempty"`
	Shared      bool      `json:"shared,omitempty"`
	Platform    string    `json:"platform,omitempty"`
	Serial      string    `json:"serial,omitempty"` // of its certificate, hex
	SPKI        string    `json:"spki,omitempty"`   // SHA-256 of its key, hex
	Note        string    `json:"note,omitempty"`
	Created     time.Time `json:"created"`
	Changed     time.Time `json:"changed"`

	// Former are the keys that it had before it renewed its certificate, the newest last.
	Former []FormerKey `json:"former,omitempty"`
}

// readDevices reads the devices that changed behind a place of the clock, in that order.
func (s *store) readDevices(ctx context.Context, behind int64) ([]LocalDevice, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, state, owner_issuer, owner, shared, platform, serial, spki, note, created, updated, former
		FROM identity_devices WHERE changed > $1 ORDER BY changed`, behind)
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	defer rows.Close()
	var all []LocalDevice
	for rows.Next() {
		var d LocalDevice
		var created, updated int64
		var former string
		if err := rows.Scan(&d.ID, &d.State, &d.OwnerIssuer, &d.Owner, &d.Shared, &d.Platform, &d.Serial, &d.SPKI, &d.Note, &created, &updated, &former); err != nil {
			return nil, fmt.Errorf("reading device: %w", err)
		}
		if former != "" {
			if err := json.Unmarshal([]byte(former), &d.Former); err != nil {
				return nil, fmt.Errorf("reading device %s: %w", d.ID, err)
			}
		}
		d.Created, d.Changed = fromUnix(created), fromUnix(updated)
		all = append(all, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	return all, nil
}

// putDevice writes a device, whatever it was before.
func (s *store) putDevice(ctx context.Context, d LocalDevice) error {
	return s.change(ctx, func(tx *sql.Tx, at int64) error { return writeDevice(ctx, tx, d, at) })
}

func writeDevice(ctx context.Context, tx *sql.Tx, d LocalDevice, at int64) error {
	var former []byte
	if len(d.Former) > 0 {
		var err error
		if former, err = json.Marshal(d.Former); err != nil {
			return fmt.Errorf("encoding device %s: %w", d.ID, err)
		}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO identity_devices (id, state, owner_issuer, owner, shared, platform, serial, spki, note, created, updated, changed, former)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, owner_issuer = excluded.owner_issuer, owner = excluded.owner, shared = excluded.shared,
			platform = excluded.platform, serial = excluded.serial, spki = excluded.spki, note = excluded.note, created = excluded.created,
			updated = excluded.updated, changed = excluded.changed, former = excluded.former`,
		d.ID, d.State, d.OwnerIssuer, d.Owner, d.Shared, d.Platform, d.Serial, d.SPKI, d.Note, toUnix(d.Created), toUnix(d.Changed), at, string(former))
	if err != nil {
		return fmt.Errorf("storing device %s: %w", d.ID, err)
	}
	return nil
}

// putCode stores a code, and clears away what is long over.
func (s *store) putCode(ctx context.Context, c enrolmentCode) error {
	return s.change(ctx, func(tx *sql.Tx, _ int64) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM identity_enrolments WHERE expires < $1`, time.Now().Add(-24*time.Hour).Unix()); err != nil {
			return fmt.Errorf("clearing old codes: %w", err)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO identity_enrolments (digest, id, owner_issuer, owner, shared, expires, used)
			VALUES ($1, $2, $3, $4, $5, $6, 0)`, c.digest, c.device.ID, c.device.OwnerIssuer, c.device.Owner, c.device.Shared, toUnix(c.expires))
		if err != nil {
			return fmt.Errorf("storing code for device %s: %w", c.device.ID, err)
		}
		return nil
	})
}

// findCode gives the device that an unused code is for; sql.ErrNoRows if there is none.
func (s *store) findCode(ctx context.Context, digest string, now time.Time) (d LocalDevice, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT id, owner_issuer, owner, shared FROM identity_enrolments WHERE digest = $1 AND used = 0 AND expires > $2`,
		digest, now.Unix()).Scan(&d.ID, &d.OwnerIssuer, &d.Owner, &d.Shared)
	return d, err
}

// errCodeUsed is a code that another request used first, or a device that was stopped meanwhile.
var errCodeUsed = errors.New("the code was used, or the device was stopped")

// enrol uses a code and writes its device, both or neither. Only one of several can.
func (s *store) enrol(ctx context.Context, digest string, d LocalDevice, now time.Time) error {
	return s.change(ctx, func(tx *sql.Tx, at int64) error {
		var stopped int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM identity_devices WHERE (id = $1 OR spki = $2) AND state IN ('blocked', 'deleted')`,
			d.ID, d.SPKI).Scan(&stopped); err != nil {
			return fmt.Errorf("looking up device %s: %w", d.ID, err)
		}
		result, err := tx.ExecContext(ctx, `UPDATE identity_enrolments SET used = $1 WHERE digest = $2 AND used = 0 AND expires > $1`, now.Unix(), digest)
		if err != nil {
			return fmt.Errorf("using code: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 || stopped > 0 {
			return errors.Join(errCodeUsed, err)
		}
		return writeDevice(ctx, tx, d, at)
	})
}
