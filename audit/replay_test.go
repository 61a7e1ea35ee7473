package audit_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/sinks"
	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

func TestReplay(t *testing.T) {
	t.Run("A35 what a mapping refused arrives once, in the schema that it has been given instead", func(t *testing.T) {
		elastic := &sinkstest.Elastic{}
		elastic.SetRefuse(func(string) int { return http.StatusBadRequest })
		var bodies strings.Builder
		elastic.Set(func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
			bodies.Write(body)
			return false
		})
		server := httptest.NewServer(elastic)
		defer server.Close()
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte("right"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := audit.Config{Dir: t.TempDir(), Sinks: []sinks.Config{
			{Name: "soc", Type: "elasticsearch", URL: server.URL, Index: "logs-headgate", TokenFile: token, Schema: "native"},
		}}
		l, err := audit.Open(cfg, audit.Options{Cluster: "test", Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		zip := decision(1)
		zip.File.Cache = "disk"
		ended := audit.Begin(zip.EventID)
		ended.Kind, ended.Outcome = audit.KindOutcome, audit.Outcome{Status: 200, Bytes: 12345, MS: 7}
		for _, r := range []*audit.Record{zip, ended} {
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		e, err := l.Export(sinks.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
		letters, err := sinks.DeadLetters(cfg.Dir, "soc")
		if err != nil || len(letters) != 2 { // the log's start, and the decision with its outcome
			t.Fatalf("dead letters %+v, %v; want two", letters, err)
		}
		_, raws := readAll(t, cfg.Dir)
		last := raws[len(raws)-2] // before the log's stop
		if !strings.Contains(last, `"what":"dead_letter"`) || !strings.Contains(last, `"root":"`) {
			t.Errorf("the log says nothing of the chain: %s", last)
		}

		elastic.SetRefuse(nil)
		bodies.Reset()
		cfg.Sinks[0].Schema = "ecs"
		sent, left, err := audit.Replay(t.Context(), cfg.Sinks[0], sinks.Options{Dir: cfg.Dir})
		if sent != 2 || left != 0 || err != nil {
			t.Fatalf("Replay = %d, %d, %v; want both sent", sent, left, err)
		}
		if ids := elastic.IDs(); len(ids) != 2 || ids[1] != letters[1].ID {
			t.Errorf("the receiver has %v, want %s and what is before it", ids, letters[1].ID)
		}
		for _, want := range []string{`"duration":7000000`, `"outcome_sequence":"2"`, `"hash":"` + letters[1].Leaf} {
			if !strings.Contains(bodies.String(), want) {
				t.Errorf("%s does not hold %s", bodies.String(), want)
			}
		}
		if letters, err := sinks.DeadLetters(cfg.Dir, "soc"); err != nil || len(letters) > 0 {
			t.Errorf("dead letters %v, %v; want none", letters, err)
		}
	})
}
