// A program that needs a library of its own.
#include <iostream>
#include <string>

std::string Greeting();

int main() { std::cout << Greeting() << "\n"; }
