package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// story tells everything, start to end.
func story(ctx context.Context, dir string, t *teller) (err error) {
	w := &world{dir: dir, t: t}
	start := time.Now()
	defer func() { err = errors.Join(err, w.close()) }()
	fmt.Fprintln(t.out, "Headgate: who asks for a Go module, may they, and is it fit? One gateway, three people, real modules.")
	t.step("Everything on this machine, in one temporary folder")
	if err := w.open(ctx); err != nil {
		return err
	}
	s := &tale{world: w}
	for _, chapter := range []func(context.Context) error{
		s.signIn, s.cold, s.warm, s.denied, s.unknown, s.withheld, s.recorded, s.stopped, s.tampered,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(t.out, "\nEvery claim above was checked. It took %s.\n", seconds(time.Since(start)))
	return nil
}

// A tale is the world and what later chapters need of earlier ones.
type tale struct {
	*world
	coldTook  time.Duration
	refusal   string   // decision id of Ben's refusal
	strangers []string // decision ids of the two requests that nobody could be found behind
	log       *auditLog
}

func (s *tale) signIn(ctx context.Context) error {
	ann := s.people[0]
	s.t.step("Ann of the payments team signs in")
	id, err := s.provider.signIn(ctx, ann)
	if err != nil {
		return err
	}
	s.t.say("Authorization code with PKCE, state and nonce; the browser filled in the form: an ID token of %d bytes.", len(id))
	if err := s.gate.exchange(ctx, ann, id); err != nil {
		return err
	}
	s.t.say("The gateway exchanged it for a token of its own, for %s. Ann's ~/.netrc now says:", ann.expires.Round(time.Minute))
	s.t.shows(netrcLine(s.gate.machine, secretless(ann.token)))
	return s.t.claims(strings.HasPrefix(ann.token, "hg_"), "it is a Headgate token")
}

// secretless is a token as it may be shown: class and id.
func secretless(token string) string {
	parts := strings.SplitN(token, "_", 4)
	if len(parts) < 4 {
		return "..."
	}
	return strings.Join(parts[:3], "_") + "_..."
}

func (s *tale) cold(ctx context.Context) error {
	s.t.step(fmt.Sprintf("Ann downloads %d real modules through the gateway, whose store is empty", len(s.modules)))
	before, _, err := s.requests(ctx)
	if err != nil {
		return err
	}
	p, err := s.project(s.people[0], "cold", s.goMod)
	if err != nil {
		return err
	}
	if s.coldTook, err = p.download(ctx, s.t); err != nil {
		return err
	}
	after, metric, err := s.requests(ctx)
	if err != nil {
		return err
	}
	zips, bytes := p.zips()
	again := after.minus(before).zip - zips
	s.t.say("go mod download, checksum database on: %s, %d modules, %.1f MB.", seconds(s.coldTook), zips, float64(bytes)/1e6)
	s.t.say("The relay passed on %s.", after.minus(before))
	return errors.Join(
		s.t.claims(len(s.modules) >= 100 && zips == len(s.modules), "all %d modules are in the cache", len(s.modules)),
		s.t.claims(p.sums() >= zips, "go.sum holds %d sums that the checksum database vouched for", p.sums()),
		// An upstream that stumbles is asked again; a mirror that fetches zips for the sake of their go.mod asks far more.
		s.t.claims(again >= 0 && again <= zips/10, "each zip was fetched once, %d of them were asked for again", again),
		s.t.claims(metric == after.all, "the gateway's metric agrees with the relay's log: %d upstream requests", metric),
		p.empty())
}

func (s *tale) warm(ctx context.Context) error {
	s.t.step("The same again with an empty module cache: everything comes from the gateway's store")
	before, metricBefore, err := s.requests(ctx)
	if err != nil {
		return err
	}
	p, err := s.project(s.people[0], "warm", s.goMod)
	if err != nil {
		return err
	}
	warm, err := p.download(ctx, s.t)
	if err != nil {
		return err
	}
	after, metricAfter, err := s.requests(ctx)
	if err != nil {
		return err
	}
	zips, _ := p.zips()
	s.t.say("go mod download: %s, %d modules.", seconds(warm), zips)
	err = errors.Join(
		s.t.claims(zips == len(s.modules), "all %d modules are in the cache", len(s.modules)),
		s.t.claims(after == before, "not one request reached the relay: %d before, %d after", before.all, after.all),
		s.t.claims(metricAfter == metricBefore, "the gateway's metric agrees: %d before, %d after", metricBefore, metricAfter),
		p.empty())
	if err != nil {
		return err
	}
	return s.straightBeside(ctx, warm)
}

// straightBeside downloads once without the gateway, for comparison.
func (s *tale) straightBeside(ctx context.Context, warm time.Duration) error {
	p, err := s.straight("straight", s.goMod)
	if err != nil {
		return err
	}
	took, err := p.download(ctx, s.t)
	if err != nil {
		return err
	}
	s.t.say("Beside it, once, straight from the upstream with an empty cache: %s.", seconds(took))
	s.t.say("Cold %s, warm %s, straight %s: warm is %.1f times as fast as cold and %.1f times as fast as straight;",
		seconds(s.coldTook), seconds(warm), seconds(took), s.coldTook.Seconds()/warm.Seconds(), took.Seconds()/warm.Seconds())
	s.t.say("cold takes %.2f times as long as straight.", s.coldTook.Seconds()/took.Seconds())
	return p.empty()
}

// enter signs a person in and gives them a .netrc.
func (w *world) enter(ctx context.Context, who *person) error {
	id, err := w.provider.signIn(ctx, who)
	if err != nil {
		return err
	}
	return w.gate.exchange(ctx, who, id)
}

var decisionID = regexp.MustCompile(`decision ([a-z0-9]{8})\b`)

func (s *tale) denied(ctx context.Context) error {
	ben := s.people[1]
	s.t.step("Ben of the web team is refused a module that teams.yaml denies his team")
	if err := s.enter(ctx, ben); err != nil {
		return err
	}
	p, err := s.project(ben, "denied", nil)
	if err != nil {
		return err
	}
	version := s.versionOf(deniedModule)
	s.t.say("teams.yaml: web: {..., deny: [%s]}. Ben runs go mod download %s@%s:", deniedModule, deniedModule, version)
	out, _, err := p.goes(ctx, "mod", "download", deniedModule+"@"+version)
	s.t.shows(out)
	if id := decisionID.FindStringSubmatch(out); id != nil {
		s.refusal = id[1]
	}
	_, _, otherErr := p.goes(ctx, "mod", "download", withheldModule+"@"+s.versionOf(withheldModule))
	return errors.Join(
		s.t.claims(err != nil && strings.Contains(out, "403 Forbidden"), "the go command fails with 403"),
		s.t.claims(strings.Contains(out, "PATH-NOT-ALLOWED"), "it shows the reason code PATH-NOT-ALLOWED"),
		s.t.claims(s.refusal != "", "and the decision id %s, by which the audit log has it", s.refusal),
		s.t.claims(otherErr == nil, "other modules are his: %s downloads", withheldModule),
		p.empty())
}

func (w *world) versionOf(path string) string {
	for _, m := range w.modules {
		if m.Path == path {
			return m.Version
		}
	}
	return "none"
}

func (s *tale) unknown(ctx context.Context) error {
	s.t.step("Nobody, and somebody with a wrong token")
	last := "a"
	if strings.HasSuffix(s.people[0].token, last) {
		last = "b"
	}
	wrong := s.people[0].token[:len(s.people[0].token)-1] + last
	for _, c := range []struct{ who, token, code string }{
		{"Without a credential", "", "CREDENTIAL-MISSING"},
		{"With a token of which one letter is wrong", wrong, "CREDENTIAL-INVALID"},
	} {
		stranger := &person{name: "a stranger", home: filepath.Join(s.dir, "home", c.code), token: c.token}
		if err := s.turnedAway(ctx, stranger, c.who, c.code); err != nil {
			return err
		}
	}
	return nil
}

// turnedAway shows a 401, as plain HTTP and as the go command prints it.
func (s *tale) turnedAway(ctx context.Context, stranger *person, sentence, code string) error {
	target := "/" + withheldModule + "/@v/list"
	got, err := s.gate.get(ctx, target, stranger.token)
	if err != nil {
		return fmt.Errorf("asking without a good credential: %w", err)
	}
	if err := os.MkdirAll(stranger.home, 0o700); err != nil {
		return fmt.Errorf("making a home: %w", err)
	}
	if stranger.token != "" {
		if err := stranger.writeNetrc(s.gate.machine, stranger.token); err != nil {
			return err
		}
	}
	p, err := s.project(stranger, "stranger-"+code, nil)
	if err != nil {
		return err
	}
	s.t.say("%s, GET %s", sentence, target)
	s.t.say("is answered %d, WWW-Authenticate: %s. The go command says:", got.status, got.header.Get("Www-Authenticate"))
	out, _, err := p.goes(ctx, "mod", "download", withheldModule+"@"+s.versionOf(withheldModule))
	s.t.shows(out)
	if id := decisionID.FindStringSubmatch(out); id != nil {
		s.strangers = append(s.strangers, id[1])
	}
	return errors.Join(
		s.t.claims(got.status == http.StatusUnauthorized && strings.HasPrefix(got.body, code), "401 with code %s", code),
		s.t.claims(err != nil && strings.Contains(out, "401 Unauthorized") && strings.Contains(out, code), "the go command fails with the same"))
}

func (s *tale) withheld(ctx context.Context) error {
	cleo := s.people[2]
	s.t.step("A version that rules.yaml denies is not offered; the newest fit one is taken")
	if err := s.enter(ctx, cleo); err != nil {
		return err
	}
	before, err := s.versions(ctx, cleo)
	if err != nil {
		return err
	}
	newest := highest(before.body)
	rule := fmt.Sprintf("  - id: demo-withheld\n    code: WITHHELD\n    match: {prefix: [%s], versions: \"=%s\"}\n"+
		"    effect: deny\n    remedy: waiver\n    owner: platform\n    text: this version breaks our invoices\n", withheldModule, strings.TrimPrefix(newest, "v"))
	s.t.say("Cleo, of no team, sees these versions of %s:", withheldModule)
	s.t.shows(strings.ReplaceAll(before.body, "\n", " "))
	s.t.say("Somebody adds to rules.yaml, while the gateway runs:")
	s.t.shows(rule)
	if err := s.addRule(rule); err != nil {
		return err
	}
	start := time.Now()
	after := before
	for after.header.Get("Headgate-Revision") == before.header.Get("Headgate-Revision") {
		if time.Since(start) > 15*time.Second {
			return fmt.Errorf("%w: the gateway takes over a changed rules.yaml within 15 s", errClaim)
		}
		time.Sleep(50 * time.Millisecond) // the gateway looks for changes each second
		if after, err = s.versions(ctx, cleo); err != nil {
			return err
		}
	}
	s.t.say("%s later the list is:", seconds(time.Since(start)))
	s.t.shows(strings.ReplaceAll(after.body, "\n", " "))
	err = s.t.claims(newest != "" && after.body == strings.Replace(before.body, newest+"\n", "", 1) && after.body != before.body,
		"%s is absent, everything else is there", newest)
	return errors.Join(err, s.takesFit(ctx, cleo, newest, highest(after.body)))
}

// takesFit shows what the go command makes of it.
func (s *tale) takesFit(ctx context.Context, cleo *person, withheld, fit string) error {
	p, err := s.project(cleo, "latest", []byte("module demo.example/cleo\n\ngo 1.24.0\n"))
	if err != nil {
		return err
	}
	s.t.say("Cleo runs go get %s@latest:", withheldModule)
	out, _, err := p.goes(ctx, "get", withheldModule+"@latest")
	s.t.shows(out)
	if err := s.t.claims(err == nil && strings.Contains(out, withheldModule+" "+fit), "it takes %s, the newest fit one", fit); err != nil {
		return err
	}
	s.t.say("Who pins %s all the same is told why not:", withheld)
	out, _, err = p.goes(ctx, "mod", "download", withheldModule+"@"+withheld)
	s.t.shows(out)
	return errors.Join(
		s.t.claims(err != nil && strings.Contains(out, "WITHHELD") && strings.Contains(out, fit), "the refusal names the rule's code and that %s works", fit),
		p.empty())
}

// versions is the list that a person sees.
func (s *tale) versions(ctx context.Context, who *person) (answer, error) {
	got, err := s.gate.get(ctx, "/"+withheldModule+"/@v/list", who.token)
	if err == nil && got.status != http.StatusOK {
		err = fmt.Errorf("asking for the list of %s: status %d: %s", withheldModule, got.status, got.body)
	}
	return got, err
}

// highest is the newest version of a list.
func highest(list string) string {
	top := ""
	for _, v := range strings.Fields(list) {
		if top == "" || semver.Compare(v, top) > 0 {
			top = v
		}
	}
	return top
}

func (s *tale) stopped(ctx context.Context) error {
	s.t.step("SIGTERM: the gateway drains and ends")
	start := time.Now()
	err := s.gate.process.stop()
	took := time.Since(start)
	if err := s.t.claims(err == nil, "it ended with exit code 0 after %d ms", took.Milliseconds()); err != nil {
		return errors.Join(err, s.gate.process.err)
	}
	out, err := s.gate.run(ctx, "audit", "verify")
	s.t.shows(out)
	return s.t.claims(err == nil, "the log still verifies, with the checkpoint of its end")
}
