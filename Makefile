# What can be done here; `make help` prints it. Each target installs what it needs by package name through
# scripts/deps.sh, which says what it does.

SHELL := /bin/bash
.DEFAULT_GOAL := help

export COWSHED_CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache/cowshed,$(HOME)/.cache/cowshed)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
DRIVER ?= btrfs

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(COWSHED_CACHE)/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

.PHONY: help build test test-long test-unit test-zfs test-daemons test-clients zfs-shell gates fuzz lint tidy bench demo clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: PKG=./btrfs/... and RUN=TestName narrow the tests, FUZZTIME=1m sets the time per fuzz target,'
	@echo 'DRIVER=btrfs|zfs chooses the filesystem of demo and bench, QUICK=1 makes a short bench,'
	@echo 'COWSHED_CACHE (now $(COWSHED_CACHE)) is where tools and the ZFS test machine are kept.'

build: bin/cowshed ## build bin/cowshed, static

bin/cowshed: FORCE
	@scripts/deps.sh build
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/cowshed

# With PKG or RUN it is for the moment after a change: the tests of these packages, or of that name, and nothing else.
test: ## run every test, as root; with PKG or RUN these alone, without gates, fuzzing, ZFS and daemons
ifeq ($(PKG)$(RUN),)
	@scripts/deps.sh test bench daemons gates
	scripts/test.sh all
else
	@scripts/deps.sh test
	scripts/test.sh race
endif

test-long: ## run the long variants of the tests, which take hours: soak, crash images, clients, fresh machine
	@scripts/deps.sh test bench daemons gates
	scripts/test.sh long

test-unit: ## run the tests that need no root; others skip
	scripts/test.sh unit

test-zfs: ## run the tests that need ZFS, on this host or in the test machine
	@scripts/deps.sh test daemons
	scripts/test-zfs.sh

test-daemons: ## run the tests with a real containerd and dockerd
	@scripts/deps.sh daemons
	scripts/test.sh daemons

test-clients: ## run the suites of BuildKit, Kubernetes and nerdctl with Cowshed and with overlayfs, and compare
	@scripts/deps.sh daemons
	scripts/test.sh clients

zfs-shell: ## get a shell in the ZFS test machine
	scripts/zfs-machine/zfs-machine.sh build
	scripts/zfs-machine/zfs-machine.sh shell --dir .

gates: ## check formatting, go vet, builds for every platform, and that deps.sh brings what is run
	@scripts/deps.sh bench gates
	scripts/test.sh gates

fuzz: ## run each fuzz target for FUZZTIME
	scripts/test.sh fuzz

lint: $(GOLANGCI) ## run golangci-lint, shellcheck, and a linter for words
	@scripts/deps.sh lint bench daemons
	$(GOLANGCI) run ./...
	cd bench && $(GOLANGCI) run ./...
	cd e2e/daemons && $(GOLANGCI) run ./...
	cd scripts/internal/commandcheck && $(GOLANGCI) run ./...
	shellcheck .ci/run $$(git ls-files --cached --others --exclude-standard '*.sh')
	go run ./scripts/internal/proselint -exempt scripts/internal/proselint/exempt.txt \
		$$(git ls-files --cached --others --exclude-standard '*.go' '*.md')

# Built from source, which takes minutes, and kept.
$(GOLANGCI):
	@echo "installing golangci-lint $(GOLANGCI_VERSION) in $(@D)"
	@mkdir -p $(@D)
	CGO_ENABLED=0 GOBIN=$(@D) go install -trimpath github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

tidy: ## bring go.mod and go.sum of all modules up to date
	go mod tidy
	cd bench && go mod tidy
	cd e2e/daemons && go mod tidy
	cd scripts/internal/commandcheck && go mod tidy

bench: ## measure Cowshed inside containerd and beside moby, podman and containerd, and write docs/benchmarks.md
	@scripts/deps.sh bench $(if $(filter btrfs,$(DRIVER)),daemons)
	$(if $(filter btrfs,$(DRIVER)),scripts/bench.sh engines)
	scripts/bench.sh $(DRIVER)

demo: build ## show the main job on a real Debian root filesystem
	@scripts/deps.sh demo
	scripts/demo.sh $(DRIVER)

clean: ## remove what was built in the tree; caches stay
	rm -rf bin bench/bin

FORCE:
