// Package check decides whether what clients saw of a cluster, while it was broken on purpose, is what the
// cluster promises. It is pure: a Run goes in, the broken invariants come out. Nothing here knows how the
// run was made.
package check
