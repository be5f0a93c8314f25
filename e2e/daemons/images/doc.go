// Package images has the round trips of images between Cowshed and other tools: skopeo, buildah, podman, umoci, Docker
// Engine of today and Debian's, ctr and nerdctl. What Cowshed exports, each loads in every format that it reads, under
// the same name and with the same digests. What each saves, in every format that it writes, Cowshed imports again.
package images
