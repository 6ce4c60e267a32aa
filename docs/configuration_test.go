package docs

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/coordinator"
)

func TestEveryConfigurationKeyIsExplained(t *testing.T) {
	for marker, defaults := range map[string]any{
		"keys: coordinator": *coordinator.DefaultConfig(),
		"keys: agent":       *agent.DefaultConfig(),
	} {
		keys := map[string]string{}
		collect(keys, "", reflect.ValueOf(defaults))
		for _, row := range table(t, "docs/configuration.md", marker) {
			value, known := keys[row[0]]
			if !known {
				t.Errorf("docs/configuration.md (%s) explains the key %q, which does not exist", marker, row[0])
				continue
			}
			delete(keys, row[0])
			// Without a default the page says what that means: required, or (in parentheses) what happens.
			unset := row[1] == "required" || strings.HasPrefix(row[1], "(")
			if unset != (value == "" || value == "[]" || value == "false" && row[1] != "false") || !unset && row[1] != value {
				t.Errorf("docs/configuration.md (%s) says that %s has the default %q; it is %q", marker, row[0], row[1], value)
			}
		}
		for key := range keys {
			t.Errorf("docs/configuration.md (%s) does not explain the key %s", marker, key)
		}
	}
}

// collect gathers the keys of a configuration with their defaults, as its YAML tags name them.
func collect(keys map[string]string, prefix string, value reflect.Value) {
	for i := range value.NumField() {
		name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("yaml"), ",")
		field := value.Field(i)
		if field.Kind() == reflect.Struct {
			collect(keys, prefix+name+".", field)
			continue
		}
		keys[prefix+name] = fmt.Sprint(field.Interface())
		if field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct {
			element := map[string]string{} // what stands in it has no default here: the list is empty
			collect(element, prefix+name+"[].", reflect.Zero(field.Type().Elem()))
			for key := range element {
				keys[key] = ""
			}
		}
	}
}
