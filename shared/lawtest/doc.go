// Package lawtest holds the rules of the whole tree as tests: who may import whom, where each third-party
// library lives, what must be documented, and what tests may not do. Each failure says which rule was
// broken and why the rule is there.
package lawtest
