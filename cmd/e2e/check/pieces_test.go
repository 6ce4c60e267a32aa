package check_test

import (
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
)

// What is invalid is done again, and neither for ever nor as if it were green.
func TestInvalidPiecesAreDoneAgain(t *testing.T) {
	for name, c := range map[string]struct {
		verdicts string // g, i, r: of one piece after the other
		again    string // y, n: after each
		ends     string // what the last one says
		green    int
		invalid  int
	}{
		"all green":                    {verdicts: "ggg", again: "nnn", green: 3},
		"one invalid":                  {verdicts: "gig", again: "nyn", green: 2, invalid: 1},
		"two in a row":                 {verdicts: "iig", again: "yyn", green: 1, invalid: 2},
		"three in a row":               {verdicts: "giii", again: "nyyn", ends: "3 times in a row", green: 1, invalid: 3},
		"never more than two in a row": {verdicts: "iigiigii", again: "yynyynyn", ends: "6 pieces were invalid, more than the 5 that may be beside 2 green ones", green: 2, invalid: 6},
		"every other one":              {verdicts: "igigigigigi", again: "ynynynynynn", ends: "6 pieces were invalid", green: 5, invalid: 6},
		"red":                          {verdicts: "ggr", again: "nnn", ends: "red", green: 2},
		"red after an invalid one":     {verdicts: "ir", again: "yn", ends: "red", invalid: 1},
		"seldom, for long": {
			verdicts: strings.Repeat("i"+strings.Repeat("g", 10), 50), again: strings.Repeat("y"+strings.Repeat("n", 10), 50), green: 500, invalid: 50,
		},
	} {
		var p check.Pieces
		var again, ended string
		for i, v := range c.verdicts {
			more, err := p.After(map[rune]check.Verdict{'g': check.Green, 'i': check.Invalid, 'r': check.Red}[v])
			again += map[bool]string{true: "y", false: "n"}[more]
			if err != nil {
				if ended = err.Error(); i != len(c.verdicts)-1 {
					t.Errorf("%s: it ends after %d pieces: %v", name, i+1, err)
				}
			}
		}
		if again != c.again || (ended == "") != (c.ends == "") || !strings.Contains(ended, c.ends) || p.Green != c.green || p.Invalid != c.invalid {
			t.Errorf("%s: again %s, ended %q, %v; want again %s, ended %q, %d green, %d invalid", name, again, ended, &p, c.again, c.ends, c.green, c.invalid)
		}
	}
}
