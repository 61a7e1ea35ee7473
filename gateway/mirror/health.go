package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Healthy tells whether the store answers. An upstream that is away is no matter of health.
func (m *Mirror) Healthy(ctx context.Context) error {
	if _, err := m.public.Stat(ctx, "ready"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("asking the store: %w", err)
	}
	return nil
}
