# make demo   the main job on real modules, start to end, on this machine
# make run    the same gateway, left running, with what to export
# make test   everything, with -race; installs what the tests need (as root), else says what to install
# make check  format, vet, lint, tidy, Rego
# make bench  the table of speed; make soak: the long forms of tests, and downloads of 536 modules (needs nginx); make fuzz: each fuzz target for FUZZTIME
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO       ?= go
FUZZTIME ?= 10s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.release=$(VERSION)
# Without gRPC's xDS and its protocol buffers, which only the Google client's direct path uses: 16 MB of memory less.
# What is released, run, tested as a program and linted is compiled in one way, so once; tests are compiled for the race
# detector beside it, which needs cgo. It leaves SQLite (C in the form of Go) and compression alone: each of them works for
# one goroutine at a time, and is seven times as fast for that.
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS) -trimpath -tags=disable_grpc_modules)
export CGO_ENABLED := 0
RACEFLAGS := -race $(foreach p,modernc.org/sqlite/lib modernc.org/libc modernc.org/memory compress/flate github.com/klauspost/compress/...,-gcflags=$p=-race=false)
RACE := CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 $(GO) test $(RACEFLAGS) -shuffle=on

GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What the tests use beside Go and git, as Debian packages.
PACKAGES := chromium gcc git gnupg gpgv libc6-dev openssh-client openssh-server postgresql prometheus rsyslog rsyslog-openssl systemd util-linux

.PHONY: build demo run test check bench soak fuzz deps packages clean

build:
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/headgate ./cmd/headgate-demo

demo:
	$(GO) run ./cmd/headgate-demo

run:
	$(GO) run ./cmd/headgate-demo --stay

# All is compiled before the first test runs: beside the compiler, a test waits for its turn until it gives up. A program
# that has the race detector waits a second at its end, if not told otherwise.
test: deps
	$(GO) build ./...
	CGO_ENABLED=1 $(GO) list $(RACEFLAGS) -export -deps -test ./... >/dev/null
	$(RACE) -timeout 20m ./...

check:
	@fmt="$$($(GO) run $(GOFUMPT) -l .)"; if [ -n "$$fmt" ]; then echo "gofumpt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(GOLANGCI) run ./...

bench:
	$(GO) run ./cmd/headgate-demo bench
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 200ms ./audit ./identity ./policy ./gateway/...

soak:
	SOAK=1 HEADGATE_TEST_RACE=1 $(RACE) -count=1 -timeout 2h -run 'TestScripts|TestConformance' ./cmd/headgate
	SOAK=1 $(GO) test -count=1 -v -timeout 6h -run 'TestKill|TestHerd|TestSuiteOn|TestFleetLock|TestP28|TestReplayOfRecorded|TestA26|TestA41|TestA52|TestWhoAmongMany|TestExportKill|TestReceivers|TestReadSetIsRight' ./audit ./cmd/headgate ./gateway ./gateway/mirror/store ./policy
	$(GO) run ./cmd/headgate-demo download

fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | sed -n '/^Fuzz/p'); do \
	    echo "fuzz $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done

deps: packages
	@$(GO) test -count=1 -timeout 30m -run '^TestServersStart$$' ./gateway/mirror/store/storetest # builds the store's servers, once

packages:
	@missing=""; command -v npm >/dev/null || missing=" nodejs npm"; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "the tests need:$$missing"; echo "as root: apt-get install$$missing"; exit 1; fi

clean:
	rm -rf bin
