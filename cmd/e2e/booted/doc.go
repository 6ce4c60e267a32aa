// Package booted runs what `make install` installs on machines that a real systemd boots: coordinator, agent and nginx as
// their units say, in their sandboxes, restarted, killed, stopped and switched off as systemd does it. It has the build tag
// e2e, for it needs root; make e2e and make e2e-short run it.
package booted
