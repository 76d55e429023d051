// Package job: what BK-CI asks this machine to run: builds in a worker, pipeline scripts.
package job
