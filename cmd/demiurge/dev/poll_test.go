package dev

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A start that does not get on says what it waits for, and not only at its very end.
func TestALongWaitSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := &system{opts: Options{Stderr: &out}}
		over := time.Now().Add(2*tellEvery + time.Second)
		err := s.poll(t.Context(), func(context.Context) string {
			if time.Now().After(over) {
				return ""
			}
			return "0 of 3 gateways are ready"
		})
		if err != nil || strings.Count(out.String(), "still waiting: 0 of 3 gateways are ready\n") != 2 {
			t.Errorf("%v, and it said %q", err, out.String())
		}
	})
}
