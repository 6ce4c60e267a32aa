package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// row is what one benchmark measured; a unit that was measured several times has several values.
type row struct {
	pkg    string
	name   string
	units  []string // in the order in which they were printed
	values map[string][]float64
}

// processors is what the testing package adds to a benchmark's name.
var processors = regexp.MustCompile(`-\d+$`)

// parse reads what `go test -bench` prints: a "pkg:" line, then one line for each run of a benchmark, which
// is its name, a count, and pairs of value and unit. Other lines are skipped.
func parse(lines *bufio.Scanner) ([]*row, error) {
	lines.Buffer(nil, 1<<20)
	var rows []*row
	byName := map[string]*row{}
	pkg := ""
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 2 && fields[0] == "pkg:" {
			pkg = fields[1]
			continue
		}
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if _, err := strconv.Atoi(fields[1]); err != nil {
			continue
		}
		name := strings.TrimPrefix(processors.ReplaceAllString(fields[0], ""), "Benchmark")
		r, known := byName[pkg+" "+name]
		if !known {
			r = &row{pkg: pkg, name: name, values: map[string][]float64{}}
			byName[pkg+" "+name] = r
			rows = append(rows, r)
		}
		r.add(fields[2:])
	}
	return rows, lines.Err()
}

// add keeps the pairs of value and unit of one run.
func (r *row) add(pairs []string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		value, err := strconv.ParseFloat(pairs[i], 64)
		if err != nil {
			continue
		}
		unit := pairs[i+1]
		if !slices.Contains(r.units, unit) {
			r.units = append(r.units, unit)
		}
		r.values[unit] = append(r.values[unit], value)
	}
}

// figures is the row's medians. The time of one operation is left out where the benchmark reports figures
// of its own: it then says how long the whole benchmark took.
func (r *row) figures() string {
	own := slices.ContainsFunc(r.units, func(unit string) bool {
		return !slices.Contains([]string{"ns/op", "B/op", "allocs/op", "MB/s"}, unit)
	})
	var out []string
	for _, unit := range r.units {
		if own && unit == "ns/op" {
			continue
		}
		values := slices.Sorted(slices.Values(r.values[unit]))
		out = append(out, number(values[len(values)/2])+" "+unit)
	}
	return strings.Join(out, ", ")
}

// printTable writes the rows as a Markdown table that is also readable as text.
func printTable(out io.Writer, rows []*row) {
	table := [][3]string{{"package", "benchmark", "figures"}}
	for _, r := range rows {
		pkg := r.pkg
		if _, short, ok := strings.Cut(pkg, "/demiurge/"); ok {
			pkg = short
		}
		table = append(table, [3]string{pkg, r.name, r.figures()})
	}
	var widths [3]int
	for _, line := range table {
		for i, cell := range line {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for n, line := range table {
		for i, cell := range line {
			fmt.Fprintf(out, "| %-*s ", widths[i], cell)
		}
		fmt.Fprintln(out, "|")
		if n == 0 {
			for _, width := range widths {
				fmt.Fprint(out, "|", strings.Repeat("-", width+2))
			}
			fmt.Fprintln(out, "|")
		}
	}
}

// number prints four significant digits without an exponent.
func number(v float64) string {
	if v >= 1000 || v <= -1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
