package mirror

import (
	"archive/zip"
	"context"
	"log/slog"
	"strings"

	"github.com/headgate/headgate/gateway/mirror/licence"
)

// findLicences looks for licences in a stored zip, as the state database has
// them. A zip that cannot be read has none there, and is looked at again.
func (m *Mirror) findLicences(ctx context.Context, t Target) string {
	found, err := m.licencesIn(ctx, t)
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "licences not looked for", slog.String("target", t.String()), slog.Any("err", err))
		return ""
	}
	return strings.Join(append([]string{found.Status}, found.IDs...), " ")
}

func (m *Mirror) licencesIn(ctx context.Context, t Target) (licence.Licences, error) {
	f, err := m.storeOf(t.Path).Open(ctx, t.upstreamPath())
	if err != nil {
		return licence.Licences{}, err
	}
	defer f.Close()
	info, err := m.storeOf(t.Path).Stat(ctx, t.upstreamPath())
	if err != nil {
		return licence.Licences{}, err
	}
	z, err := zip.NewReader(f, info.Size)
	if err != nil {
		return licence.Licences{}, err
	}
	return m.licences.Find(ctx, t.module(), z)
}

// readLicences reads what findLicences gave.
func readLicences(text string) Licences {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Licences{Status: "missing"}
	}
	return Licences{Status: words[0], IDs: words[1:]}
}
