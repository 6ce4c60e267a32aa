package config

import (
	"reflect"
	"strings"
)

// Differences names the keys whose values differ between two configurations of one type, in the order of the
// type. It does not tell the values, which may be secrets.
func Differences[C Target](a, b C) []string {
	return differences("", reflect.ValueOf(a), reflect.ValueOf(b))
}

func differences(key string, a, b reflect.Value) []string {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return nil
	}
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		return differences(key, a.Elem(), b.Elem())
	}
	var out []string
	if a.Kind() == reflect.Struct {
		for i := range a.NumField() {
			name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
			if name == "" || name == "-" || !a.Type().Field(i).IsExported() {
				continue
			}
			out = append(out, differences(strings.TrimPrefix(key+"."+name, "."), a.Field(i), b.Field(i))...)
		}
	}
	if out == nil && key != "" {
		out = []string{key}
	}
	return out
}
