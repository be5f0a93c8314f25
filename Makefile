# What can be done here; `make help` prints it. Each target installs what it needs by package name through
# scripts/deps.sh, which says what it does.

SHELL := /bin/bash
.DEFAULT_GOAL := help

export COWSHED_CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache/cowshed,$(HOME)/.cache/cowshed)

# Go reads the version from git. VERSION is for sources that are without.
LDFLAGS := -s -w $(if $(VERSION),-X main.version=$(VERSION))
DRIVER ?= btrfs

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(COWSHED_CACHE)/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

.PHONY: help build install uninstall release test test-long test-systemd test-unit test-zfs test-daemons test-clients zfs-shell
.PHONY: gates fuzz lint tidy bench demo clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: PKG=./btrfs/... and RUN=TestName narrow the tests, FUZZTIME=1m sets the time per fuzz target,'
	@echo 'DRIVER=btrfs|zfs chooses the filesystem of demo and bench, QUICK=1 makes a short bench,'
	@echo 'MAINTAINER="Name <address>" is the maintainer whom the packages of release name,'
	@echo 'PREFIX ($(PREFIX)), SYSCONFDIR ($(SYSCONFDIR)) and DESTDIR say where install puts things,'
	@echo 'COWSHED_CACHE (now $(COWSHED_CACHE)) is where tools and the ZFS test machine are kept.'

build: bin/cowshed bin/share ## build bin/cowshed, static, its manual and shell completions

bin/cowshed: FORCE
	@scripts/deps.sh build
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/cowshed

# The program writes its manual and completions itself. One for another machine is built for this one too.
bin/share: bin/cowshed
	@rm -rf $@ && mkdir -p $@/man/man8 $@/bash-completion/completions $@/zsh/site-functions $@/fish/vendor_completions.d
	@set -e; unset COWSHED_ROOT COWSHED_DRIVER NERDCTL_TOML; program=bin/cowshed; \
	if [[ $$(go env GOOS GOARCH) != $$(go env GOHOSTOS GOHOSTARCH) ]]; then \
		program=bin/cowshed-here; \
		env -u GOOS -u GOARCH CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $$program ./cmd/cowshed; \
	fi; \
	$$program man $@/man/man8; \
	gzip -9 -n $@/man/man8/*; \
	$$program completion bash >$@/bash-completion/completions/cowshed; \
	$$program completion zsh >$@/zsh/site-functions/_cowshed; \
	$$program completion fish >$@/fish/vendor_completions.d/cowshed.fish

# Needs no Go, so that it can be run with sudo.
install: ## install what make build has built, with units and a configuration, unless there is one
	@[[ -x bin/cowshed && -d bin/share ]] || { echo 'make install: nothing is built yet; run: make build' >&2; exit 1; }
	install -D -m 755 bin/cowshed '$(DESTDIR)$(PREFIX)/bin/cowshed'
	find bin/share -type f -printf '%P\n' | while read -r file; do \
		install -D -m 644 "bin/share/$$file" '$(DESTDIR)$(PREFIX)/share/'"$$file" || exit; \
	done
	install -d -m 755 '$(DESTDIR)$(PREFIX)/lib/systemd/system' '$(DESTDIR)$(PREFIX)/share/doc/cowshed'
	sed 's#/usr/local/bin/#$(PREFIX)/bin/#' packaging/cowshed.service >'$(DESTDIR)$(PREFIX)/lib/systemd/system/cowshed.service'
	chmod 644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/cowshed.service'
	install -m 644 packaging/cowshed.socket '$(DESTDIR)$(PREFIX)/lib/systemd/system/cowshed.socket'
	install -m 644 LICENSE CHANGELOG.md '$(DESTDIR)$(PREFIX)/share/doc/cowshed'
	install -m 644 packaging/cowshed.toml '$(DESTDIR)$(PREFIX)/share/doc/cowshed/config.toml'
	[[ -e '$(DESTDIR)$(SYSCONFDIR)/cowshed/config.toml' ]] || \
		install -D -m 644 packaging/cowshed.toml '$(DESTDIR)$(SYSCONFDIR)/cowshed/config.toml'

uninstall: ## remove what make install has installed, but for a configuration that has been changed
	if cmp -s '$(DESTDIR)$(PREFIX)/share/doc/cowshed/config.toml' '$(DESTDIR)$(SYSCONFDIR)/cowshed/config.toml'; then \
		rm -f '$(DESTDIR)$(SYSCONFDIR)/cowshed/config.toml'; \
	fi
	rm -f '$(DESTDIR)$(PREFIX)/bin/cowshed' '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/cowshed' \
		'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_cowshed' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/cowshed.fish' \
		'$(DESTDIR)$(PREFIX)/lib/systemd/system/cowshed.service' '$(DESTDIR)$(PREFIX)/lib/systemd/system/cowshed.socket' \
		'$(DESTDIR)$(PREFIX)'/share/man/man8/cowshed.8.gz '$(DESTDIR)$(PREFIX)'/share/man/man8/cowshed-*.8.gz
	rm -rf '$(DESTDIR)$(PREFIX)/share/doc/cowshed'
	rmdir '$(DESTDIR)$(SYSCONFDIR)/cowshed' 2>/dev/null || true

release: ## build static programs, packages, bills of materials and checksums of the commit in dist/, twice, and compare
	@scripts/deps.sh build
	go -C scripts/internal/release run . -maintainer "$$MAINTAINER" -tree '$(CURDIR)' -out '$(CURDIR)/dist'

# PKG or RUN are for the moment after a change: the tests of these packages, or of that name, and nothing else.
test: ## run every test, as root; with PKG or RUN these alone, and nothing that takes long
ifeq ($(PKG)$(RUN),)
	@scripts/deps.sh test bench daemons gates
	scripts/test.sh all
else
	@scripts/deps.sh test
	scripts/test.sh quick
endif

test-long: ## run the long variants of the tests, which take hours: soak, crash images, clients, fresh machine
	@scripts/deps.sh test bench daemons gates systemd
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

test-systemd: ## install the .deb in a virtual machine with systemd, and check the units through a restart and a removal
	@scripts/deps.sh systemd
	scripts/test.sh systemd

zfs-shell: ## get a shell in the ZFS test machine
	scripts/zfs-machine/zfs-machine.sh build
	scripts/zfs-machine/zfs-machine.sh shell --dir .

gates: ## check formatting, go vet, builds for every platform, examples, and that deps.sh brings what is run
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
	cd scripts/internal/release && $(GOLANGCI) run ./...
	cd scripts/internal/manifests && $(GOLANGCI) run ./...
	cd scripts/internal/apicontract && $(GOLANGCI) run ./...
	shellcheck .ci/run $$(git ls-files --cached --others --exclude-standard '*.sh')
	go run ./scripts/internal/proselint $$(git ls-files --cached --others --exclude-standard '*.go' '*.md')

# Built from source, which takes minutes, and kept.
$(GOLANGCI):
	@echo "installing golangci-lint $(GOLANGCI_VERSION) in $(@D)"
	@mkdir -p $(@D)
	CGO_ENABLED=0 GOBIN=$(@D) scripts/retry.sh go install -trimpath github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

tidy: ## bring go.mod and go.sum of all modules up to date
	go mod tidy
	cd bench && go mod tidy
	cd e2e/daemons && go mod tidy
	cd scripts/internal/commandcheck && go mod tidy
	cd scripts/internal/release && go mod tidy
	cd scripts/internal/manifests && go mod tidy
	cd scripts/internal/apicontract && go mod tidy

bench: ## measure Cowshed inside containerd and beside moby, podman and containerd, and write docs/benchmarks.md
	@scripts/deps.sh bench $(if $(filter btrfs,$(DRIVER)),daemons)
	$(if $(filter btrfs,$(DRIVER)),scripts/bench.sh engines)
	$(if $(filter btrfs,$(DRIVER)),scripts/bench.sh containers)
	$(if $(filter btrfs,$(DRIVER)),scripts/bench.sh live)
	scripts/bench.sh $(DRIVER)

demo: build ## show the main job on a real Debian root filesystem
	@scripts/deps.sh demo
	scripts/demo.sh $(DRIVER)

clean: ## remove what was built in the tree; caches stay
	rm -rf bin bench/bin dist

FORCE:
