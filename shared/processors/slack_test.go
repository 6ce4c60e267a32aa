package processors

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asked makes this program one that prints its slack, and then that of a program that it starts.
const asked = "PROCESSORS_TEST_SLACK"

func TestMain(m *testing.M) {
	if os.Getenv(asked) != "" {
		fmt.Println(slack())
		if os.Getenv(asked) == "twice" {
			cmd := exec.Command(os.Args[0])
			cmd.Env, cmd.Stdout = append(os.Environ(), asked+"=once"), os.Stdout
			if err := cmd.Run(); err != nil {
				panic(err)
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// slack is that of the thread.
func slack() time.Duration {
	ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		panic(err)
	}
	return time.Duration(ns)
}

func TestAProgramAndWhatItStartsHaveTheSlackAndTheCallerKeepsItsOwn(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := slack()
	if before == Slack {
		t.Fatalf("this program has a slack of %s itself", before)
	}
	var said bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stdout = append(os.Environ(), asked+"=twice"), &said
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s\n%s\n", Slack, Slack); said.String() != want {
		t.Errorf("the slacks are %q, want %q", said.String(), want)
	}
	if now := slack(); now != before {
		t.Errorf("the slack of the caller is %s, was %s", now, before)
	}
}
