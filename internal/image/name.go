package image

import (
	"strings"

	"github.com/distribution/reference"
)

// An image's name is the name that people use here. Docker and containerd accept names of the reference grammar of
// registries, and mean by "debian" docker.io/library/debian:latest.

// canonicalName is the whole reference that a name stands for, or "" if the grammar does not allow the name.
func canonicalName(name string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return ref.String()
}

// familiarName is the shortest form of a name, as Docker lists it.
func familiarName(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(ref)
}

// withTag is the name with another tag, or as it was if that is no tag or the name has none.
func withTag(name, tag string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	tagged, ok := ref.(reference.NamedTagged)
	if !ok || tagged.Tag() == tag {
		return name
	}
	other, err := reference.WithTag(reference.TrimNamed(ref), tag)
	if err != nil {
		return name
	}
	return other.String()
}

// repoTag is the name of a repository and a tag in it, as Docker writes them. ok is false if a name cannot have a tag: it
// has a digest, or the grammar does not allow it.
func repoTag(name string) (repository, tag string, ok bool) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", "", false
	}
	tagged, ok := ref.(reference.NamedTagged)
	if !ok {
		return "", "", false
	}
	return reference.FamiliarName(tagged), tagged.Tag(), true
}

// refName is the name of the image in an OCI layout: the part after the last colon, or the whole name if it has no
// tag. It is "" for a name with a digest.
func refName(name string) string {
	if strings.Contains(name, "@") {
		return ""
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i+1:]
	}
	return name
}
