// Package e2e is the proof that a cluster keeps its promises while it is broken on purpose: three real
// coordinators on hosts of their own, agents, a load, and faults by a seeded schedule. Its tests have the
// build tag e2e, for they need root and minutes; `make e2e` and `make soak` run them.
package e2e
