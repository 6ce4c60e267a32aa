package logging

import (
	"errors"

	"github.com/demiurge-platform/demiurge/shared/config"
)

// Config is the part of every program's configuration that is about its log on standard error.
type Config struct {
	Level  string `yaml:"level"`  // trace, debug, info, warn, error or off; reloaded
	Format string `yaml:"format"` // text or json
}

// DefaultConfig is info, as text.
func DefaultConfig() Config { return Config{Level: "info", Format: FormatText} }

// Validate checks the values; section is the path of this part in the file.
func (c *Config) Validate(section string) error {
	var errs []error
	if _, err := ParseLevel(c.Level); err != nil {
		errs = append(errs, config.Invalid(section+".level", err.Error(), "set info unless you look for something"))
	}
	if err := CheckFormat(c.Format); err != nil {
		errs = append(errs, config.Invalid(section+".format", err.Error(), "set text or json"))
	}
	return errors.Join(errs...)
}
