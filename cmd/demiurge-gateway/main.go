// Command demiurge-gateway is the built-in gateway program: one process, at most one organization. The
// agent starts it; everything it needs stands in its environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/demiurge-platform/demiurge/agent/gateway"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/version"
)

const usage = `demiurge-gateway serves one organization on a host of Demiurge. The agent starts it.

Usage:
  demiurge-gateway            serve, as the environment says
  demiurge-gateway --help     show this
  demiurge-gateway --version  show the version

Environment:
  DEMIURGE_GATEWAY_ID  id of the gateway: gw- and 10 characters of [a-z2-7]
  DEMIURGE_LISTEN      absolute path of the unix socket to listen on, or fd:N for a passed descriptor
  DEMIURGE_STATE_DIR   absolute path of a directory for this gateway alone
  DEMIURGE_CONTROL     absolute path of the agent's socket for this gateway (optional)
  DEMIURGE_RELEASE     name of the release, shown in answers (optional)
  DEMIURGE_LOG_LEVEL   trace, debug, info, warn, error or off (default info)
  DEMIURGE_LOG_FORMAT  text or json (default text)

SIGTERM and SIGINT: WebSockets are closed (1001), requests finish within 10 s, exit 0.
Exit codes: 0 stopped, 1 failed, 2 wrong usage or environment.
`

// maxProcs is the variable by which somebody else decides how many processors this process uses.
const maxProcs = "GOMAXPROCS"

func main() {
	// Hundreds of gateways wait on a host for one request at a time. One that has only that to do uses one
	// processor: it wakes no further thread for it, and takes no time from the others. A busy one uses all that
	// it may (options.Busy).
	if os.Getenv(maxProcs) == "" {
		runtime.GOMAXPROCS(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch {
		case len(args) == 1 && (args[0] == "--help" || args[0] == "-h" || args[0] == "help"):
			fmt.Fprint(stdout, usage)
			return 0
		case len(args) == 1 && (args[0] == "--version" || args[0] == "version"):
			fmt.Fprintln(stdout, "demiurge-gateway", version.Get())
			return 0
		}
		fmt.Fprintf(stderr, "demiurge-gateway: cannot use %q: it takes --help or --version only, everything else is in the environment\n", strings.Join(args, " "))
		return 2
	}
	opts, err := options(getenv, stderr)
	if getenv(maxProcs) == "" {
		opts.Busy = runtime.SetDefaultGOMAXPROCS
	}
	if err != nil {
		fmt.Fprintf(stderr, "demiurge-gateway: %v\nSee demiurge-gateway --help.\n", err)
		return 2
	}
	if err := gateway.Run(ctx, opts); err != nil {
		fmt.Fprintf(stderr, "demiurge-gateway: %v\n", err)
		return 1
	}
	return 0
}

// options reads the environment and names everything that is missing at once.
func options(getenv func(string) string, stderr io.Writer) (gateway.Options, error) {
	var errs []error
	need := func(name, what string) string {
		v := getenv(name)
		if v == "" {
			errs = append(errs, fmt.Errorf("cannot start without %s: set it to %s", name, what))
		}
		return v
	}
	raw := need("DEMIURGE_GATEWAY_ID", "the gateway's id")
	opts := gateway.Options{
		Gateway:  id.Gateway(raw),
		Listen:   need("DEMIURGE_LISTEN", "the path of a unix socket, or fd:N"),
		StateDir: need("DEMIURGE_STATE_DIR", "a directory for this gateway alone"),
		Control:  getenv("DEMIURGE_CONTROL"),
		Release:  getenv("DEMIURGE_RELEASE"),
	}
	if raw != "" {
		if _, err := id.ParseGateway(raw); err != nil {
			errs = append(errs, fmt.Errorf("DEMIURGE_GATEWAY_ID: %w", err))
		}
	}
	log, err := logging.New(logging.Options{Name: "gateway", Level: getenv("DEMIURGE_LOG_LEVEL"), Format: getenv("DEMIURGE_LOG_FORMAT"), Output: stderr})
	if err != nil {
		errs = append(errs, err)
	}
	opts.Logger = log
	return opts, errors.Join(errs...)
}
