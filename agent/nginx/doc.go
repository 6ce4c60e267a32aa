// Package nginx makes a host's nginx serve the organizations of that host, and keeps it serving.
//
// It does two things in two different ways. A route (organization → gateway) is one symbolic link that
// nginx follows on every request: switching it is one rename, no reload. Everything else (the gateways
// of the host, an organization's own domains and certificate, listeners) is a generation: a numbered,
// immutable directory that is tested, made live by one rename of a one-line pointer file, loaded by
// SIGHUP and believed only when it has answered and its predecessor has stopped accepting.
//
// DESIGN.md has the reasons.
package nginx
