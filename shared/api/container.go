package api

import "time"

// CreateContainer is the body of POST /containers.
type CreateContainer struct {
	ProjectID string                   `json:"project_id"`
	Name      string                   `json:"name" minLength:"1" maxLength:"100"`
	Services  []CreateContainerService `json:"services" minItems:"1" maxItems:"8"`
}

// CreateContainerService is something that the container will serve. It gets an OAuth client of its own.
type CreateContainerService struct {
	Name          string   `json:"name" maxLength:"32" doc:"[a-z0-9-], beginning with a letter; the first service is also served under the container's own name"`
	RedirectPaths []string `json:"redirect_paths,omitempty" maxItems:"9" doc:"Where the OAuth client may send people back to, on the names of this service; none: the client acts for itself only"`
	Scope         []string `json:"scope,omitempty" maxItems:"64" doc:"The most that the client can be given; default: identity"`
	Public        bool     `json:"public,omitempty" doc:"The client keeps no secret"`
}

// Container is a program of a project that is reached through this organization's names.
type Container struct {
	ContainerID string             `json:"container_id"`
	ProjectID   string             `json:"project_id"`
	Name        string             `json:"name"`
	State       string             `json:"state" enum:"creating,down,up,deleting"`
	Hostname    string             `json:"hostname" doc:"Where its first service is served"`
	Services    []ContainerService `json:"services"`
	CreatedBy   string             `json:"created_by"`
	CreatedAt   time.Time          `json:"created_at"`
	SeenAt      time.Time          `json:"seen_at,omitzero" doc:"Its last heartbeat, since the agent was started"`
}

// Containers is the answer to GET /containers.
type Containers struct {
	Items []Container `json:"items"`
}

// ContainerService is one thing that a container serves.
type ContainerService struct {
	Name          string   `json:"name"`
	Hostname      string   `json:"hostname"`
	ClientID      string   `json:"client_id"`
	RedirectPaths []string `json:"redirect_paths,omitempty"`
	Scope         []string `json:"scope"`
	Public        bool     `json:"public,omitempty"`
	Serving       bool     `json:"serving" doc:"It was announced, and the container is up"`
}

// CreatedContainer is the answer to POST /containers. Its secrets are shown in it and in its repeats only.
type CreatedContainer struct {
	Container
	HostingToken string            `json:"hosting_token"`
	ExpiresAt    time.Time         `json:"hosting_token_expires_at"`
	Secrets      map[string]string `json:"client_secrets" doc:"By client_id, of clients that keep one"`
}

// IssueContainerToken is the body of POST /containers/{container}/token; it may be left out.
type IssueContainerToken struct {
	Alone bool `json:"alone,omitempty" doc:"End all earlier hosting tokens of the container"`
}

// ContainerToken is a hosting token, with which a container announces itself and renews the token.
type ContainerToken struct {
	HostingToken string    `json:"hosting_token"`
	ExpiresAt    time.Time `json:"hosting_token_expires_at"`
}

// AnnounceContainer is the body of POST /containers/{container}/announce, which a container repeats as its heartbeat.
type AnnounceContainer struct {
	Address  string                 `json:"address,omitempty" doc:"Where it is reached; default: where this came from"`
	Services []AnnouncedServicePort `json:"services" minItems:"1"`
}

// AnnouncedServicePort says at which port a service is.
type AnnouncedServicePort struct {
	Name string `json:"name"`
	Port uint16 `json:"port" minimum:"1"`
}

// AnnouncedContainer is the answer to an announcement.
type AnnouncedContainer struct {
	Heartbeat Duration `json:"heartbeat" doc:"How often to announce"`
	Patience  Duration `json:"patience" doc:"After how long without an announcement the container is down"`
}

// ContainerAccess says that the caller may reach a container, and where and as whom.
type ContainerAccess struct {
	ContainerID string `json:"container_id"`
	ProjectID   string `json:"project_id"`
	Service     string `json:"service"`
	Upstream    string `json:"upstream" doc:"Address and port"`
	UserID      string `json:"user_id"`
	Username    string `json:"username"`
}
