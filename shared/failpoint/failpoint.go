// Package failpoint lets a test kill the real program at a labelled step. Built with the tag
// failpoints, Hit sends SIGKILL to its own process when the environment variable DEMIURGE_FAILPOINT
// names the label; without the tag it is an empty function that the compiler removes.
//
// The variable holds "label" (the first time the label is reached) or "label:n" (the n-th time).
package failpoint

import (
	"fmt"
	"strconv"
	"strings"
)

// Variable is the environment variable that selects where to die.
const Variable = "DEMIURGE_FAILPOINT"

// Parse splits the variable's value into the label and how often it must be reached. Labels contain no
// colon, so everything after the last one is the count.
func Parse(value string) (label string, n int, err error) {
	label, count, found := strings.Cut(value, ":")
	if label == "" {
		return "", 0, fmt.Errorf("cannot use %q as %s: want label or label:n", value, Variable)
	}
	if !found {
		return label, 1, nil
	}
	n, err = strconv.Atoi(count)
	if err != nil || n < 1 {
		return "", 0, fmt.Errorf("cannot use %q as %s: the count must be a positive number", value, Variable)
	}
	return label, n, nil
}
