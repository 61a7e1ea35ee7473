package sinks

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

// A refusing is a data stream whose mapping refuses some events until it is mended.
type refusing struct {
	*sinkstest.Elastic
	config  Config
	options Options

	mu  sync.Mutex // guards got
	got []string
}

func newRefusing(t *testing.T) *refusing {
	t.Helper()
	r := &refusing{Elastic: &sinkstest.Elastic{}, options: Options{Dir: t.TempDir()}}
	r.Each(func(id string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, id)
	})
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("right"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.config = Config{Name: "soc", Type: typeElastic, URL: server.URL, Index: "logs-headgate", TokenFile: token}
	return r
}

// mapping refuses events whose id ends so.
func (r *refusing) mapping(refused string) {
	r.SetRefuse(func(id string) int {
		if refused != "" && strings.HasSuffix(id, refused) {
			return http.StatusBadRequest
		}
		return 0
	})
}

func (r *refusing) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.got))
}

func someEvents(n int) []Event {
	var all []Event
	for i := range n {
		body := fmt.Appendf(nil, `{"n":%d}`, i)
		all = append(all, Event{ID: fmt.Sprintf("e-%d", i), Seq: int64(i), Kind: "decision", Time: time.Unix(int64(i), 0), Body: body, Raw: body})
	}
	return all
}

func (r *refusing) send(t *testing.T, events []Event) (Sent, error) {
	t.Helper()
	return Again(t.Context(), r.config, r.options, func(send func(Event) error) error {
		for _, e := range events {
			if err := send(e); err != nil {
				return err
			}
		}
		return nil
	}, func(Sent) {})
}

func asBefore(d DeadLetter) ([]byte, error) { return []byte(d.Body), nil }

func (r *refusing) letters(t *testing.T) (ids []string) {
	t.Helper()
	all, err := DeadLetters(r.options.Dir, "soc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		ids = append(ids, d.ID)
	}
	return ids
}

func TestResend(t *testing.T) {
	buried := func(t *testing.T) *refusing {
		t.Helper()
		r := newRefusing(t)
		r.mapping("")
		s := &sink{config: r.config, log: &testLog{}, dead: deadFolder(r.options.Dir, "soc"), metrics: newMetrics().of("soc")}
		for _, e := range someEvents(3) {
			if err := s.bury([]letter{{e, "mapping"}}); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	t.Run("A35 dead letters that are sent again arrive once and are gone, those that are refused again stay", func(t *testing.T) {
		r := buried(t)
		r.mapping("e-1")
		if sent, left, err := Resend(t.Context(), r.config, r.options, asBefore); sent != 2 || left != 1 || err != nil {
			t.Fatalf("Resend = %d, %d, %v; want 2 sent, and 1 left", sent, left, err)
		}
		all, err := DeadLetters(r.options.Dir, "soc") // checks the chain
		if err != nil || len(all) != 1 || all[0].ID != "e-1" || !strings.Contains(all[0].Reason, "400") {
			t.Fatalf("dead letters %+v, %v; want e-1 with its new reason", all, err)
		}
		r.mapping("")
		if sent, left, err := Resend(t.Context(), r.config, r.options, asBefore); sent != 1 || left != 0 || err != nil {
			t.Fatalf("Resend = %d, %d, %v; want 1 sent", sent, left, err)
		}
		if got := r.taken(); !slices.Equal(got, []string{"e-0", "e-1", "e-2"}) {
			t.Errorf("the receiver has %v, want each once", got)
		}
		left, err := os.ReadDir(deadFolder(r.options.Dir, "soc"))
		if err != nil || len(left) > 0 {
			t.Errorf("the folder of dead letters holds %v, %v; want nothing", left, err)
		}
		if sent, left, err := Resend(t.Context(), r.config, r.options, asBefore); sent != 0 || left != 0 || err != nil {
			t.Errorf("Resend = %d, %d, %v of no dead letters", sent, left, err)
		}
	})
	t.Run("A35 a record is shown as the configuration has it now", func(t *testing.T) {
		r := buried(t)
		var out string
		r.config = Config{Name: "soc", Type: typeFile, Path: filepath.Join(t.TempDir(), "out")}
		if _, _, err := Resend(t.Context(), r.config, r.options, func(d DeadLetter) ([]byte, error) {
			if d.ID == "e-1" {
				return nil, errors.New("no record")
			}
			return []byte("new " + d.ID), nil
		}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(r.config.Path)
		if out = string(b); err != nil || out != "new e-0\n{\"n\":1}\nnew e-2\n" {
			t.Errorf("the receiver has %q, %v", out, err)
		}
	})
	t.Run("A35 a receiver that is away or denies us leaves all as it was", func(t *testing.T) {
		r := buried(t)
		if err := os.WriteFile(r.config.TokenFile, []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		if sent, _, err := Resend(t.Context(), r.config, r.options, asBefore); sent != 0 || !errors.Is(err, errDenied) {
			t.Errorf("Resend = %d, %v; want an error", sent, err)
		}
		all, err := DeadLetters(r.options.Dir, "soc")
		if err != nil || len(all) != 3 || all[2].Reason != "mapping" {
			t.Errorf("dead letters %+v, %v; want the three as they were", all, err)
		}
	})
	t.Run("a letter cut by a crash is passed over, and none is lost behind it", func(t *testing.T) {
		r := buried(t)
		name := lettersFile(deadFolder(r.options.Dir, "soc"))
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{1, 20, 150} {
			if err := os.WriteFile(name, whole[:len(whole)-cut], 0o600); err != nil {
				t.Fatal(err)
			}
			if got := r.letters(t); !slices.Equal(got, []string{"e-0", "e-1"}) {
				t.Fatalf("%d bytes cut: dead letters %v", cut, got)
			}
			if _, err := appendLetters(name, []DeadLetter{{ID: "next"}}); err != nil {
				t.Fatal(err)
			}
			if got := r.letters(t); !slices.Equal(got, []string{"e-0", "e-1", "next"}) {
				t.Fatalf("%d bytes cut: dead letters %v after one more", cut, got)
			}
		}
	})
	t.Run("A35 a letter that was changed or taken away is noticed", func(t *testing.T) {
		r := buried(t)
		name := lettersFile(deadFolder(r.options.Dir, "soc"))
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(string(whole), "\n")
		for what, text := range map[string]string{
			"changed": strings.Replace(string(whole), `"reason":"mapping"`, `"reason":"manning"`, 1), "first taken away": lines[1] + lines[2],
			"second taken away": lines[0] + lines[2], "no letter": lines[0] + "{\n" + lines[2], "exchanged": lines[1] + lines[0] + lines[2],
		} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := DeadLetters(r.options.Dir, "soc"); !errors.Is(err, ErrAltered) {
				t.Errorf("%s: DeadLetters = %v, %v", what, got, err)
			}
			if _, _, err := Resend(t.Context(), r.config, r.options, asBefore); !errors.Is(err, ErrAltered) || len(r.taken()) > 0 {
				t.Errorf("%s: Resend: %v", what, err)
			}
		}
	})
}

func TestAgain(t *testing.T) {
	t.Run("what is refused is a dead letter, once", func(t *testing.T) {
		r := newRefusing(t)
		r.mapping("7")
		for range 2 {
			sent, err := r.send(t, someEvents(20))
			if err != nil || sent.Events != 18 || sent.Refused != 2 || sent.First.Unix() != 0 || sent.Last.Unix() != 19 {
				t.Fatalf("Again = %+v, %v", sent, err)
			}
		}
		if got := r.letters(t); !slices.Equal(got, []string{"e-7", "e-17"}) {
			t.Errorf("dead letters %v", got)
		}
		if at, err := Delivered(r.options.Dir, "soc"); err != nil || at != (Position{}) {
			t.Errorf("the cursor is at %+v, %v", at, err)
		}
	})
	t.Run("a receiver that fails again and again, or denies us, is told of, and not waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for err, most := range map[error]time.Duration{errAway: time.Minute, errDenied: time.Second, nil: time.Minute} {
				r := &receiver{}
				r.set(func(events []Event) (answer, error) { return answer{again: events}, err })
				s := &sink{config: Config{Name: "soc"}.withDefaults(), log: mute{}, logger: slog.New(slog.DiscardHandler), pace: usualPace, tries: sendTries, metrics: newMetrics().of("soc"), to: r}
				begun := time.Now()
				got := s.deliver(t.Context(), someEvents(3))
				if want := cmp.Or(err, errPatience); !errors.Is(got, want) || time.Since(begun) > most {
					t.Errorf("deliver: %v after %s, want %v", got, time.Since(begun), want)
				}
			}
		})
	})
	t.Run("what only a connection vouches for is told when that ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := &settler{}
			s := &sink{to: r}
			if err := s.settled(t.Context()); err != nil {
				t.Errorf("settled: %v", err)
			}
			time.AfterFunc(20*time.Second, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.lost = errLost
			})
			if err := s.settled(t.Context()); !errors.Is(err, errLost) {
				t.Errorf("settled: %v, want that it may be lost", err)
			}
		})
	})
}

// Two writers of one file, as the gateway and a person who sends records again, take nothing from each other.
func TestFileShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.jsonl")
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			f, err := openFile(Config{Path: path, RotateBytes: 3000, Keep: 100})
			if err != nil {
				t.Error(err)
				return
			}
			defer f.close()
			for i := range 100 {
				if _, err := f.deliver(t.Context(), []Event{{Body: fmt.Appendf(nil, "%d %d %s", w, i, strings.Repeat("x", 50))}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) < 4 {
		t.Fatalf("files %v, %v; want several", names, err)
	}
	seen := map[string]bool{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			seen[line] = true
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d lines are there, want 200", len(seen))
	}
}
