package deploy_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
)

// An image is what a container tool would make of one stage of the Containerfile.
type image struct {
	built string // what the stages that build made, of all images
	from  string // "scratch", or the stage that it began as
	env   []string
	user  string
	entry []string
	cmd   []string
	// copies are the stage's COPY lines: from a path below built to one of the image.
	copies []struct{ from, to string }
}

// A recipe is the Containerfile, carried out.
type recipe struct {
	dir    string // of this test run; removed at its end
	images map[string]*image
	last   string // the stage that is built unless another is asked for
}

// packages is the one line of the Containerfile that is not carried out: these packages the machine of the test has.
const packages = "apt-get update && apt-get install --yes --no-install-recommends git gpgv openssh-client"

// the is the recipe of all tests of this run, carried out once.
var the = sync.OnceValues(build)

func TestMain(m *testing.M) {
	code := m.Run()
	if r, err := the(); err == nil {
		os.RemoveAll(r.dir)
	}
	os.Exit(code)
}

func assembled(t *testing.T) *recipe {
	t.Helper()
	r, err := the()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// binary is the gateway as the build stage made it.
func (r *recipe) binary() string { return filepath.Join(r.dir, "image/root/usr/bin/headgate") }

// build carries out the Containerfile: its RUN lines with other output folders, then the instructions of its images.
func build() (*recipe, error) {
	text, err := os.ReadFile("container/Containerfile")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "headgate-image-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // uid 65532 must pass
		return nil, err
	}
	r := &recipe{dir: dir, images: map[string]*image{}}
	for line := range strings.Lines(string(text)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		current := r.images[r.last]
		switch {
		case word == "FROM":
			err = r.begin(strings.Fields(rest))
		case word == "RUN" && current == nil && rest != packages:
			err = r.run(rest)
		case current != nil:
			err = current.instruct(word, rest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
	}
	return r, nil
}

// begin takes in a FROM line. A stage that comes of scratch is an image, and one that comes of an image is another.
func (r *recipe) begin(fields []string) error {
	if len(fields) != 3 || fields[1] != "AS" {
		return errors.New("want FROM STAGE AS NAME")
	}
	r.last = fields[2]
	if fields[0] == "scratch" {
		r.images[r.last] = &image{built: r.dir, from: fields[0]}
	} else if base := r.images[fields[0]]; base != nil {
		i := *base
		i.from, i.env, i.copies = fields[0], slices.Clone(i.env), slices.Clone(i.copies)
		r.images[r.last] = &i
	}
	return nil
}

func (r *recipe) run(line string) error {
	script, out, ok := strings.Cut(line, " ")
	if !ok || filepath.Dir(out) != "/" {
		return errors.New("want RUN SCRIPT /FOLDER")
	}
	cmd := exec.Command("./"+script, filepath.Join(r.dir, out))
	cmd.Dir = ".."
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// instruct takes in one instruction of an image.
func (i *image) instruct(word, rest string) error {
	fields := strings.Fields(rest)
	switch word {
	case "", "VOLUME", "EXPOSE", "STOPSIGNAL", "WORKDIR":
	case "ENV":
		i.env = append(i.env, fields...)
	case "USER":
		i.user = rest
	case "ENTRYPOINT":
		return yaml.Unmarshal([]byte(rest), &i.entry)
	case "CMD":
		return yaml.Unmarshal([]byte(rest), &i.cmd)
	case "COPY":
		stage := false
		for len(fields) > 0 && strings.HasPrefix(fields[0], "--") {
			stage = stage || strings.HasPrefix(fields[0], "--from=")
			fields = fields[1:]
		}
		if !stage || len(fields) != 2 || !strings.HasPrefix(fields[0], "/") {
			return errors.New("want COPY --from=STAGE [--chown=…] /… TARGET")
		}
		i.copies = append(i.copies, struct{ from, to string }{fields[0], fields[1]})
	default:
		if !strings.HasPrefix(word, "#") {
			return errors.New("no such instruction in the language of these images")
		}
	}
	return nil
}

// What is built when nobody says which has nothing beside the gateway; compose builds that one, and can build both.
func TestContainerfile(t *testing.T) {
	r := assembled(t)
	plain, with := r.images["headgate"], r.images["headgate-git"]
	if plain == nil || with == nil {
		t.Fatalf("the Containerfile has the images %v, want headgate and headgate-git", slices.Sorted(maps.Keys(r.images)))
	}
	if r.last != "headgate" || len(plain.copies) != 2 {
		t.Errorf("the last stage is %s, and headgate has %v; want headgate last, with nothing but the gateway", r.last, plain.copies)
	}
	if target := composeService(t).Build.Target; target != "headgate" {
		t.Errorf("compose builds %q", target)
	}
	if with.from != plain.from || with.user != "65532:65532" {
		t.Errorf("headgate-git is %+v, want it to come of the same stage as headgate", with)
	}
}
