// Package failpoint lets a test kill the real program at a labelled step. Built with the tag
// failpoints, Hit sends SIGKILL to its own process where a test wants it; without the tag it is an empty
// function that the compiler removes.
//
// The environment variable DEMIURGE_FAILPOINT holds "label" (the first time the label is reached) or
// "label:n" (the n-th time) for the life of a process. DEMIURGE_FAILPOINT_FILE names a file that holds the
// same, and that is looked at whenever a label is reached: so a program that runs can be armed. The file is
// removed before the process dies, so that its successor lives. DEMIURGE_FAILPOINT_TRACE names a file to
// which every label that is reached is appended, one on a line.
//
// Fail makes a step fail instead, as a bad disk would: while the file that DEMIURGE_FAILPOINT_FULL names is
// there and one of its words begins the step's label, the step answers ENOSPC, as on a full disk. A word may
// say otherwise: label=eio answers EIO, and label=300ms lets the step take so much longer.
package failpoint

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Variable is the environment variable that selects where to die. The names of all others begin with it.
const Variable = "DEMIURGE_FAILPOINT"

// The other environment variables.
const (
	FileVariable  = Variable + "_FILE"  // a file that selects where to die
	TraceVariable = Variable + "_TRACE" // a file that collects the labels
	FullVariable  = Variable + "_FULL"  // a file that selects which steps find the disk full, or bad
)

// couldBe reports whether something could be a label, or begin one. What could not is a mistake of a test, which would
// pass without its fault.
func couldBe(label string) bool {
	return label != "" && !strings.ContainsFunc(label, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' || r == '=' })
}

// Parse splits the variable's value into the label and how often it must be reached. Labels contain no
// colon, so everything after the first one is the count.
func Parse(value string) (label string, n int, err error) {
	label, count, found := strings.Cut(value, ":")
	if !couldBe(label) {
		return "", 0, fmt.Errorf("cannot use %.80q as %s: want label or label:n", value, Variable)
	}
	if !found {
		return label, 1, nil
	}
	n, err = strconv.Atoi(count)
	if err != nil || n < 1 {
		return "", 0, fmt.Errorf("cannot use %.80q as %s: the count must be a positive number", value, Variable)
	}
	return label, n, nil
}

// Fault is what a bad disk does to a step.
type Fault struct {
	Label string // beginning of the labels of the steps
	Err   error  // nil: none
	Delay time.Duration
}

// ParseFault splits a word of the file of FullVariable.
func ParseFault(word string) (Fault, error) {
	label, how, found := strings.Cut(word, "=")
	f := Fault{Label: label}
	var err error
	switch {
	case !found:
		f.Err = syscall.ENOSPC
	case how == "eio":
		f.Err = syscall.EIO
	default:
		f.Delay, err = time.ParseDuration(how)
	}
	if err != nil || f.Delay < 0 || !couldBe(label) {
		return Fault{}, fmt.Errorf("cannot use %.80q in the file of %s: want label, label=eio or label=300ms", word, FullVariable)
	}
	return f, nil
}
