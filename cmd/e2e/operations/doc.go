// Package operations runs the commands of docs/operations.md, as they stand there, on machines with files and addresses
// of their own: three coordinators and their hosts are installed, run, changed, broken and recovered as the document says. A
// command of the document that it does not run fails it. Names are in a real PowerDNS, and after each part the whole zone is
// held against the state. It has the build tag e2e, for it needs root; make e2e runs it.
//
// What the machines lack is systemd: a stand-in for systemctl reads the units, and runs their programs as the user and with
// the capabilities that they name. It restarts nothing by itself; package booted has the real one.
package operations
