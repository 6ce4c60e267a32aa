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

// Fault is what a bad disk does to a step.
type Fault struct {
	Label string // beginning of the labels of the steps
	Err   error  // nil: none
	Delay time.Duration
}

// ParseFault splits a word of the file of FullVariable.
func ParseFault(word string) (Fault, error) {
	label, how, found := strings.Cut(word, "=")
	f := Fault{Label: label, Err: syscall.ENOSPC}
	if !found {
		return f, nil
	}
	if how == "eio" {
		f.Err = syscall.EIO
		return f, nil
	}
	delay, err := time.ParseDuration(how)
	if err != nil || delay < 0 {
		return f, fmt.Errorf("cannot use %q in the file of %s: want label, label=eio or label=300ms", word, FullVariable)
	}
	f.Err, f.Delay = nil, delay
	return f, nil
}
