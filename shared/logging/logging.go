// Package logging sets up hclog, the only logger of all programs: one root logger per program, named
// sub-loggers per component, messages without variables and key/value pairs beside them.
package logging

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Formats of log lines.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// Options of a program's root logger.
type Options struct {
	Name   string    // of the program
	Level  string    // trace, debug, info (default), warn, error, off
	Format string    // FormatText (default) or FormatJSON
	Output io.Writer // default: standard error
}

// New makes a program's root logger. Times are UTC, so that lines of several hosts sort.
func New(opts Options) (hclog.Logger, error) {
	level, err := ParseLevel(opts.Level)
	if err != nil {
		return nil, err
	}
	if err := CheckFormat(opts.Format); err != nil {
		return nil, err
	}
	if opts.Output == nil {
		opts.Output = os.Stderr
	}
	return hclog.New(&hclog.LoggerOptions{
		Name:       opts.Name,
		Level:      level,
		JSONFormat: opts.Format == FormatJSON,
		Output:     opts.Output,
		TimeFormat: "2006-01-02T15:04:05.000Z07:00",
		TimeFn:     func() time.Time { return time.Now().UTC() },
	}), nil
}

// ParseLevel reads a level's name; empty is info.
func ParseLevel(s string) (hclog.Level, error) {
	if s == "" {
		return hclog.Info, nil
	}
	level := hclog.LevelFromString(strings.ToLower(s))
	if level == hclog.NoLevel {
		return level, fmt.Errorf("cannot use %.80q as log level: want trace, debug, info, warn, error or off", s)
	}
	return level, nil
}

// CheckFormat checks a format's name; empty is FormatText.
func CheckFormat(s string) error {
	switch s {
	case "", FormatText, FormatJSON:
		return nil
	}
	return fmt.Errorf("cannot use %.80q as log format: want %s or %s", s, FormatText, FormatJSON)
}
