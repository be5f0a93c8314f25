// Package manifests checks the manifests in packaging/kubernetes against the types of Kubernetes' API. It is a module of its
// own, since nothing else needs these types.
package manifests
