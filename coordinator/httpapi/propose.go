package httpapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// propose puts a command into the log and gives its refusal back as an error.
func (s *Server) propose(ctx context.Context, c command.Command) (command.Result, error) {
	if err := s.atLeader(); err != nil {
		return command.Result{}, err
	}
	result, _, err := s.opts.Proposer.Propose(ctx, c)
	if err != nil {
		var f *fault.Error
		if errors.As(err, &f) {
			return result, f
		}
		f = fault.Wrap(fault.NoLeader, err, "it is not known whether the change took effect; make the same call again")
		f.RetryAfter = time.Second
		return result, f
	}
	if result.Err != nil {
		return result, result.Err
	}
	return result, nil
}

// textLimit bounds names that people give.
const textLimit = 200

// text checks a name that people give. Such names reach no path, no unit and no template of a
// configuration; what would have a meaning there is refused all the same.
func text(value string) (string, error) {
	bad := func(r rune) bool { return id.Hidden(r) || strings.ContainsRune(";{}$", r) }
	if utf8.RuneCountInString(value) > textLimit || strings.ContainsFunc(value, bad) || strings.Contains(value, "../") {
		return "", fmt.Errorf("cannot use %.80q as a name: want at most %d characters, without line breaks, characters that cannot be seen or turn the text around, ; { } $ and ../", value, textLimit)
	}
	return value, nil
}

// versionName checks the name of a release, which becomes part of a path on the hosts.
func versionName(value string) (string, error) {
	for i, r := range value {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._+-", r)) || i >= 64 {
			return "", fmt.Errorf("cannot use %.80q as a release: want 1 to 64 characters of [A-Za-z0-9._+-], beginning with a letter or digit", value)
		}
	}
	return value, nil
}
