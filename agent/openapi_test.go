package agent_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

var update = flag.Bool("update", false, "write the OpenAPI document of organizations' host names")

// document is where the agent has it from.
const document = "tenantapi/openapi.json"

// The document is made here, from the table that is served, so that the agent need not carry what makes it.
func TestTheOpenAPIDocumentIsTheTable(t *testing.T) {
	h := prepareHost(t)
	a, err := agent.New(agent.Options{Config: h.config, Logger: logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Stop(t.Context()) }()
	made, err := json.MarshalIndent(openAPI(t, a.TenantRoutes()), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(document, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(filepath.FromSlash(document))
	if err != nil || !bytes.Equal(kept, made) {
		t.Errorf("%s is not of the present table (%v): go test ./agent -run OpenAPI -update", document, err)
	}
}

var parameter = regexp.MustCompile(`\{([a-z_]+)\}`)

func openAPI(t *testing.T, rows []tenantapi.Route) *huma.OpenAPI {
	t.Helper()
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	out := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{Title: "Demiurge: organizations' host names", Version: "1", Description: "What the agent answers on https://org-<uuid>.<domain>. " +
			"Errors are application/problem+json with a stable code; those of the OAuth endpoints are as RFC 6749 says."},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{
			"token":   {Type: "http", Scheme: "bearer", Description: "An access token of the organization, or a token of the platform's user"},
			"session": {Type: "apiKey", In: "cookie", Name: "__Host-demiurge-session", Description: "A browser that has logged in"},
		}},
		Paths: map[string]*huma.PathItem{},
	}
	for _, row := range rows {
		if row.Doc.Summary == "" {
			t.Errorf("%s %s has no summary", row.Method, row.Path)
		}
		op := &huma.Operation{Method: row.Method, Path: row.Path, Summary: row.Doc.Summary, OperationID: operationID(row), Responses: map[string]*huma.Response{}}
		op.Extensions = map[string]any{"x-caller": string(row.Caller)}
		for _, name := range parameter.FindAllStringSubmatch(row.Path, -1) {
			op.Parameters = append(op.Parameters, &huma.Param{Name: name[1], In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
		}
		if row.Keyed {
			longest := 200
			op.Parameters = append(op.Parameters, &huma.Param{
				Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: &longest},
				Description: "The same key answers with the first result for 24 h; with another body it is a conflict",
			})
		}
		if row.Doc.Takes != nil {
			op.RequestBody = &huma.RequestBody{Required: true, Content: body(schemas, row.Doc.Takes, "application/json")}
		}
		success := &huma.Response{Description: "Done"}
		if row.Doc.Gives != nil {
			success.Content = body(schemas, row.Doc.Gives, "application/json")
		}
		op.Responses["2XX"] = success
		problem := func(status string, codes ...fault.Code) {
			op.Responses[status] = &huma.Response{Description: "A problem", Content: body(schemas, api.Problem{}, api.ProblemContentType), Extensions: map[string]any{"x-codes": codes}}
		}
		problem("400", fault.InvalidRequest)
		problem("409", fault.StaleEpoch, fault.Conflict)
		if row.Keyed {
			problem("409", fault.StaleEpoch, fault.Conflict, fault.Superseded)
		}
		problem("503", fault.StorageLow)
		if row.Caller == tenantapi.Member {
			op.Extensions["x-action"] = row.Action.String()
			op.Security = []map[string][]string{{"token": {}}, {"session": {}}}
			problem("401", fault.Unauthenticated)
			problem("403", fault.Forbidden)
			problem("404", fault.NotFound)
		}
		out.AddOperation(op)
	}
	return out
}

func body(schemas huma.Registry, of any, kind string) map[string]*huma.MediaType {
	typ := reflect.TypeOf(of)
	return map[string]*huma.MediaType{kind: {Schema: schemas.Schema(typ, true, typ.Name())}}
}

// operationID is made of method and path, which no two rows share.
func operationID(row tenantapi.Route) string {
	parts := strings.FieldsFunc(row.Path, func(r rune) bool { return strings.ContainsRune("/{}._-", r) })
	return strings.Join(slices.Concat([]string{strings.ToLower(row.Method)}, parts), "-")
}
