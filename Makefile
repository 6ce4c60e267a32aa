# Everything that one does with this tree. `make help` lists the targets.
#
# Only the Go module proxy and Debian's archive are ever asked for anything, and by `make clients` npm's registry.

SHELL    := /bin/bash
GO       ?= go
PROGRAMS := demiurge demiurge-coordinator demiurge-agent demiurge-gateway

# A release sets VERSION; without it the programs answer with what the Go toolchain recorded in them.
VERSION  ?= $(shell git describe --tags --exact-match 2>/dev/null)
LDFLAGS  := -X github.com/demiurge-platform/demiurge/shared/version.linked=$(VERSION)

# How long `make soak` goes on. SEED replays an earlier run of `make e2e` or `make soak`.
DURATION ?= 20m
SEED     ?= 0

# Arguments of `demiurge dev`, as in: make dev ARGS='--nginx-port 8080'
ARGS     ?=
# What `make test`, `make fuzz` and `make bench` look at.
PKG      ?= ./...
# Those that take longest begin first, so that at the end not one is waited for alone.
ifeq ($(PKG),./...)
LONGEST  := ./cmd/systemtest ./coordinator ./cmd/demiurge/dev ./agent/nginx ./shared/gossip
endif
FUZZTIME ?= 10s
BENCH    ?= .

DESTDIR  ?=
PREFIX   ?= /usr/local
SYSCONF  ?= /etc
BINDIR   := $(PREFIX)/bin
UNITS    := $(wildcard systemd/*.service)

# Debian keeps nginx where only root's PATH looks.
export PATH := $(PATH):/usr/sbin:/sbin

# A mounted checkout may belong to another user: git then refuses to tell the
# revision, and the toolchain would refuse to build. The revision is left out in that case.
ifneq ($(shell git rev-parse HEAD >/dev/null 2>&1 && echo yes),yes)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

.DEFAULT_GOAL := help
.PHONY: help build dev deps-dev deps-test deps-e2e check test clients e2e e2e-short soak judge mutants fuzz bench install uninstall clean $(PROGRAMS:%=bin/%)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(PROGRAMS:%=bin/%) ## Build the four programs into bin/

$(PROGRAMS:%=bin/%): bin/%:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

dev: deps-dev build ## Run a whole system on this machine (ARGS='--nginx-port 8080')
	bin/demiurge dev $(ARGS)

deps-dev: ## Install what `make dev` needs and this machine lacks (nginx)
	.ci/packages nginx

deps-test: ## Install what `make test` needs and this machine lacks (nginx, promtool, curl, gcc, PowerDNS, dig, headless Chromium)
	.ci/packages nginx promtool curl gcc pdns_server sqlite3 dig chromium-headless-shell

check: ## Check format, vet, staticcheck, import laws, documents
	@unformatted=$$($(GO) tool gofumpt -l .) || exit 1; if [ -n "$$unformatted" ]; then \
		printf 'not in the one format of this project; run `go tool gofumpt -w` on:\n%s\n' "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags e2e ./cmd/e2e/...
	$(GO) vet -tags clients ./agent
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./shared/lawtest ./docs ./packaging/... ./cmd/e2e/mutants

test: deps-test ## Run every test, with the race detector, and the tests of the alert rules
	$(GO) test -race -p 2 -timeout 15m $(LONGEST) $(PKG)
	cd packaging/prometheus && promtool test rules demiurge.rules.test.yml

deps-e2e: ## Install what `make e2e` needs and this machine lacks (nginx, ip, nft, PowerDNS, dig, systemd)
	.ci/packages nginx ip nft pdns_server sqlite3 dig systemd-run

# oauth2-proxy is built in its own module: `go install` would also ask for the list of its versions.
clients: deps-dev ## Run OAuth clients that others wrote (oauth4webapi from npm's registry, oauth2-proxy from its module) against a real agent
	.ci/packages node npm
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && npm install --silent --no-audit --no-fund --prefix "$$dir" oauth4webapi@3.8.8 && \
		source=$$($(GO) mod download -json github.com/oauth2-proxy/oauth2-proxy/v7@v7.6.0 | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p') && \
		$(GO) -C "$$source" build -o "$$dir/oauth2-proxy" . && \
		NODE_MODULES="$$dir/node_modules" OAUTH2_PROXY="$$dir/oauth2-proxy" $(GO) test -tags clients -count=1 -run 'Oauth4webapi|OAuth2Proxy' ./agent

e2e: deps-e2e ## Run what docs/operations.md says, and the units under a real systemd, then break a cluster in every way once, under load, and check what it promised (root; SEED=n)
	$(GO) test -tags e2e -count=1 ./cmd/e2e/lab ./cmd/e2e/operations
	$(GO) test -tags e2e -count=1 ./cmd/e2e/booted
	$(GO) test -tags e2e -count=1 -v -timeout 25m ./cmd/e2e -seed $(SEED)

e2e-short: deps-e2e ## The same with one fault of each family, as CI does it (root; SEED=n)
	$(GO) test -tags e2e -count=1 ./cmd/e2e/lab ./cmd/e2e/operations
	$(GO) test -tags e2e -count=1 -short ./cmd/e2e/booted
	$(GO) test -tags e2e -count=1 -v -short -timeout 8m ./cmd/e2e -seed $(SEED)

soak: deps-e2e ## The same again and again for DURATION (20m)
	$(GO) test -tags e2e -count=1 -v -timeout 0 ./cmd/e2e -seed $(SEED) -duration $(DURATION)

judge: ## Check stored histories of such runs once more (HISTORY='file...')
	$(GO) run ./cmd/e2e/judge $(HISTORY)

mutants: ## Plant bugs, one at a time, and see that the tests catch each (MUTANTS='name...')
	$(GO) run ./cmd/e2e/mutants $(MUTANTS)

fuzz: ## Fuzz every decoder for FUZZTIME (10s) each
	GO='$(GO)' .ci/fuzz $(FUZZTIME) $(PKG)

bench: deps-dev ## Run the benchmarks (BENCH=pattern) and print their table
	$(GO) run ./packaging/bench -bench '$(BENCH)' $(PKG)

install: build ## Install programs, units, alert rules, example configuration (PREFIX, DESTDIR)
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(PREFIX)/lib/systemd/system' '$(DESTDIR)$(PREFIX)/lib/sysusers.d' \
		'$(DESTDIR)$(PREFIX)/lib/tmpfiles.d' '$(DESTDIR)$(PREFIX)/share/demiurge/prometheus' '$(DESTDIR)$(SYSCONF)/demiurge'
	install -m 0755 $(PROGRAMS:%=bin/%) '$(DESTDIR)$(BINDIR)/'
	for unit in $(UNITS); do \
		sed 's|/usr/bin/demiurge|$(BINDIR)/demiurge|g' "$$unit" >'$(DESTDIR)$(PREFIX)/lib/systemd/system/'"$${unit##*/}" || exit 1; \
		chmod 0644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/'"$${unit##*/}"; done
	install -m 0644 systemd/demiurge.sysusers.conf '$(DESTDIR)$(PREFIX)/lib/sysusers.d/demiurge.conf'
	install -m 0644 systemd/demiurge.tmpfiles.conf '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/demiurge.conf'
	install -m 0644 packaging/prometheus/demiurge.rules.yml '$(DESTDIR)$(PREFIX)/share/demiurge/prometheus/'
	for file in coordinator agent; do \
		test -e '$(DESTDIR)$(SYSCONF)/demiurge/'$$file.yaml || \
		sed 's|/usr/bin/demiurge|$(BINDIR)/demiurge|g' packaging/config/$$file.yaml >'$(DESTDIR)$(SYSCONF)/demiurge/'$$file.yaml || exit 1; done

uninstall: ## Remove what `make install` put there; configuration and data stay
	rm -f $(PROGRAMS:%='$(DESTDIR)$(BINDIR)/%') \
		$(patsubst systemd/%,'$(DESTDIR)$(PREFIX)/lib/systemd/system/%',$(UNITS)) \
		'$(DESTDIR)$(PREFIX)/lib/sysusers.d/demiurge.conf' '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/demiurge.conf'
	rm -rf '$(DESTDIR)$(PREFIX)/share/demiurge'

clean: ## Remove what was built
	rm -rf bin
