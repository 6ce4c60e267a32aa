//go:build !race

package oauth

// mixedTokens is how many tokens TestMemoryReturnsToTheBaseline makes.
const mixedTokens = 1_000_000
