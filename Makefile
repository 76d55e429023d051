# make            the programs for this machine, in bin/
# make demo       a build from a controller through the agent into a worker and back (KEEP=1 leaves it running)
# make test       everything that can be tested here
# make lab        supervision on machines of its own: real systemd in containers, Windows by Wine; root on Debian (docs/lab.md)
# make packages   deb, rpm, pkg and msi of all architectures, in dist/ (PACKAGES="deb rpm" for some)
# make dist       portable archives of all platforms, in dist/ (DIST="linux/amd64 ..." for some)
# VERSION=v1.2.3  on the command line sets the version that the programs print; else it comes from git

SHELL   := /bin/bash
VERSION ?= $(shell sh scripts/version.sh)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BUILT   := $(shell git show -s --format=%cI HEAD 2>/dev/null || echo unknown)
CLI     := github.com/devops-agent/devops-agent/cmd/internal/cli
LDFLAGS := -s -w -buildid= -X $(CLI).version=$(VERSION) -X $(CLI).commit=$(COMMIT) -X $(CLI).built=$(BUILT)
HOST_OS := $(shell go env GOOS)
HOST_ARCH := $(shell go env GOARCH)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 30s
BIN := bin# BIN=DIR on the command line: "make build" into another folder
export GOFLAGS := -buildvcs=false

# program:folder; the names are those that a BK-CI server hands out (protocol §4.4)
PROGRAMS := devopsAgent:agent devopsWorker:worker devopsController:controller devopsDaemon:daemon upgrader:upgrader
TOOLS := packager:packager # for who publishes versions; of this machine only

# $(call build,GOOS,GOARCH,suffix,more programs)
define build
@command -v go >/dev/null || { echo "make: there is no go in PATH; it needs Go 1.26.5 or newer: https://go.dev/dl/" >&2; exit 1; }
@mkdir -p $(BIN)
@for p in $(PROGRAMS) $(4); do \
	out=$(BIN)/$${p%%:*}$(3); echo "build $$out"; \
	CGO_ENABLED=0 GOOS=$(1) GOARCH=$(2) go build -trimpath -ldflags '$(LDFLAGS)' -o $$out ./cmd/$${p##*:} || exit 1; \
done
endef

.PHONY: dist packages build build_all build_linux build_macos build_windows clean demo test unit e2e e2e_race vet lint fuzz vuln bench bench-fleet tools lab lab-systemd lab-wine lab-crash lab-power lab-packages lab-page
# also under the names by which they look for each other and people call them
build:
	$(call build,$(HOST_OS),$(HOST_ARCH),$(HOST_SUFFIX),$(TOOLS))
ifneq ($(HOST_OS),windows)
	@for p in $(PROGRAMS) $(TOOLS); do \
		name=$(BIN)/$${p%%:*}; ln -f "$$name"$(HOST_SUFFIX) "$$name" 2>/dev/null || cp -f "$$name"$(HOST_SUFFIX) "$$name" || exit 1; \
	done
endif

# the suffix of this machine's own programs
HOST_SUFFIX := $(if $(filter windows,$(HOST_OS)),.exe,_$(if $(filter darwin,$(HOST_OS)),macos,$(HOST_OS))$(if $(filter amd64,$(HOST_ARCH)),,_$(HOST_ARCH)))

build_all: build_linux build_macos build_windows

build_linux:
	$(call build,linux,amd64,_linux)
	$(call build,linux,arm64,_linux_arm64)

build_macos:
	$(call build,darwin,amd64,_macos)
	$(call build,darwin,arm64,_macos_arm64)

build_windows:
	$(call build,windows,amd64,.exe)
	$(call build,windows,arm64,_arm64.exe)

# what "make dist" makes; all when it is empty
DIST ?=
dist:
	@VERSION='$(VERSION)' LDFLAGS='$(LDFLAGS)' bash scripts/dist.sh $(DIST)

# packages for package managers, SHA256SUMS and the bill of materials; the packager is of this machine
PACKAGES ?=
comma := ,
space := $(subst ,, )
packages: build_all
	@CGO_ENABLED=0 GOOS= GOARCH= go build -trimpath -o bin/packager$(HOST_SUFFIX) ./cmd/packager
	@rm -f dist/*.deb dist/*.rpm dist/*.pkg dist/*.msi dist/*.cdx.json dist/SHA256SUMS*
	@bin/packager$(HOST_SUFFIX) build --version '$(VERSION)' --commit '$(COMMIT)' $(if $(filter unknown,$(BUILT)),,--time '$(BUILT)') $(if $(PACKAGES),--only '$(subst $(space),$(comma),$(strip $(PACKAGES)))')

clean:
	rm -rf bin dist

demo: build
	@BIN=bin SUFFIX=$(HOST_SUFFIX) KEEP=$(KEEP) bash scripts/demo.sh

test: tools vet lint unit e2e

tools:
	@sh scripts/tools.sh

vet:
	@for os in linux darwin windows; do echo "vet $$os"; CGO_ENABLED=0 GOOS=$$os go vet ./... || exit 1; done
	@echo "vet the lab's tests"; CGO_ENABLED=0 GOOS=linux go vet -tags lab ./cmd/e2e

lint:
	@echo "lint"; test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt on these"; exit 1; }
	@GOOS= GOARCH= GOBIN=$(CURDIR)/bin/tools go install $(STATICCHECK)
	@for os in linux darwin windows; do echo "staticcheck $$os"; CGO_ENABLED=0 GOOS=$$os bin/tools/staticcheck ./... || exit 1; done

# the race detector needs a C compiler; it would take a second at the end of every program that a test starts
RACE = $(shell command -v gcc >/dev/null 2>&1 && echo -race)
unit: tools
	@command -v gcc >/dev/null 2>&1 || echo "no C compiler: unit tests run without the race detector"
	@CGO_ENABLED=$(if $(RACE),1,0) GORACE=atexit_sleep_ms=0 bash scripts/gotest.sh $(RACE) -timeout 10m $$(go list ./... | grep -v /cmd/e2e$$)

# the built programs against a recording server; ends with the table of the protocol's 127 statements
e2e: tools
	@mkdir -p bin
	@CGO_ENABLED=0 STATEMENTS_TABLE=$(CURDIR)/bin/statements.txt bash scripts/gotest.sh -timeout 20m -count=1 ./cmd/e2e; code=$$?; \
		if [ $$code = 0 ]; then cat bin/statements.txt; fi; exit $$code

# the same with programs that look for data races; a race in one fails its test. The detector itself is told to take no
# second at the end and little memory, so that the tests' bounds hold for it, too
e2e_race: tools
	@command -v gcc >/dev/null 2>&1 || { echo "skipped: no C compiler for the race detector"; exit 0; }; \
		E2E_RACE=1 GORACE="atexit_sleep_ms=0 history_size=0" go test -timeout 20m -count=1 ./cmd/e2e

# every fuzz target for FUZZTIME, on what it has found before and on new inputs
fuzz:
	@bash scripts/fuzz.sh $(FUZZTIME)

# known vulnerabilities, as the Go project's database has them
vuln:
	@bash scripts/vuln.sh

bench: build
	bash scripts/bench.sh

# simulated agents against the controller: docs/fleetsim.md; FLEET=1000 for fewer, PROFILES=idle-wait,restart for some
bench-fleet: build
	@CGO_ENABLED=0 GOOS= GOARCH= go build -trimpath -o bin/fleetsim$(HOST_SUFFIX) ./cmd/fleetsim
	@SUFFIX=$(HOST_SUFFIX) FLEET='$(FLEET)' PROFILES='$(PROFILES)' bash scripts/fleet.sh

# real systemd as PID 1 of containers, and Windows by Wine (docs/lab.md); LAB=NAME runs only tests with such a name
lab: lab-systemd lab-packages lab-wine lab-crash lab-power lab-page

lab-systemd:
	@bash lab/run systemd '$(LAB)'

lab-wine:
	@bash lab/run wine '$(LAB)'

# upgrades while any process is killed, and while the power goes (docs/lab.md); CRASH_RUNS=1000, POWER_CUTS=50 for long ones
lab-crash:
	@bash lab/run crash '$(LAB)'

lab-power:
	@bash lab/run power '$(LAB)'

# the controller's page in a real Chromium (docs/lab.md)
lab-page:
	@bash lab/run page '$(LAB)'

# deb and rpm in machines of their own: every transition, upgrades during builds, conffiles, chroots, clones (docs/packages.md)
lab-packages:
	@bash lab/run packages '$(LAB)'
