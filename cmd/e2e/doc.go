// Package e2e is the proof that a cluster keeps its promises while it is broken on purpose: three real
// coordinators on hosts of their own, hosts with the real agent, nginx and gateways, scripted hosts that carry
// most of the load, clients, an operator who cordons and drains hosts, and faults by a seeded schedule. Each fault is a piece of its own, from one quiet
// moment to the next; its history is written to a file as it happens, and package check judges the file.
// In the long form all begin with the programs of the previous version, which are replaced one after the other as the first
// fault, and programs are built so that their wall clocks can be set.
// A piece whose load is too small before its fault is invalid and proves nothing: it is done again with the same seed, and
// where that happens too often (check.Pieces) the run fails and says that the machine is too slow.
// The tests have the build tag e2e, for they need root and minutes; `make e2e` and `make soak` run them, `make e2e-short`
// takes one fault of each family, and `make judge` judges a stored history once more.
// Beside it, package operations does what the operator's document says, and package booted has a real systemd.
package e2e
