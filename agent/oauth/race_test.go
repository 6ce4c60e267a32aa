//go:build race

package oauth

// mixedTokens is how many tokens TestMemoryReturnsToTheBaseline makes: the race detector makes each many times as
// slow and as large.
const mixedTokens = 200_000
