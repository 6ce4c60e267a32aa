package api

import "time"

// Member is a user of an organization with a role.
type Member struct {
	UserID   string `json:"user_id"`
	Username string `json:"username,omitempty"`
	Role     string `json:"role" enum:"owner,admin,member"`
}

// Project is a part of an organization.
type Project struct {
	ProjectID string `json:"project_id"`
	Name      string `json:"name,omitempty"`
}

// PutOrganization is the whole of what the platform knows of an organization. Body of PUT /v1/organizations/{id}.
type PutOrganization struct {
	Name     string    `json:"name" minLength:"1" maxLength:"200"`
	Members  []Member  `json:"members,omitempty" maxItems:"10000"`
	Projects []Project `json:"projects,omitempty" maxItems:"10000"`
}

// PutMember is the body of PUT /v1/organizations/{id}/members/{user_id}.
type PutMember struct {
	Username string `json:"username,omitempty"`
	Role     string `json:"role" enum:"owner,admin,member"`
}

// PutProject is the body of PUT /v1/organizations/{id}/projects/{project_id}.
type PutProject struct {
	Name string `json:"name,omitempty"`
}

// Organization is a tenant.
type Organization struct {
	OrganizationID string    `json:"organization_id"`
	Name           string    `json:"name"`
	Hostname       string    `json:"hostname"`
	Members        []Member  `json:"members"`
	Projects       []Project `json:"projects"`
	AllocationID   string    `json:"allocation_id,omitempty" doc:"The live allocation"`
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
	Index          uint64    `json:"index"`
}
